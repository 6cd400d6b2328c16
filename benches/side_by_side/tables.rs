//! What was measured as Markdown.

use std::fmt::Write;

use super::support::drive::Run;
use super::support::numbers::{grouped, time};
use super::{Measured, SHAPES, name_of};

/// All tables. The first of `measured` is what the others are compared with.
pub(crate) fn markdown(measured: &[Measured]) -> String {
    let Some(limit) = measured.first() else { return String::new() };
    let mut text = String::new();
    section(
        &mut text,
        "Calls a second, and the rate as a share of the echo loop's",
        measured,
        |server, shape| {
            let rate = server.spread(shape, |run| run.rate)?;
            let ratio = server.against(limit, shape)?;
            Some(format!(
                "{} ({:.2}; {:.2} to {:.2})",
                grouped(rate.median),
                ratio.median,
                ratio.least,
                ratio.most
            ))
        },
    );
    section(&mut text, "CPU time of the server for each call", measured, |server, shape| {
        Some(time(server.spread(shape, Run::cpu_per_call)?.median))
    });
    section(&mut text, "Latency: median and p99", measured, |server, shape| {
        let p50 = server.spread(shape, |run| run.p50.as_secs_f64())?;
        let p99 = server.spread(shape, |run| run.p99.as_secs_f64())?;
        Some(format!("{}, {}", time(p50.median), time(p99.median)))
    });
    section(&mut text, "Share of its core that the load used", measured, |server, shape| {
        Some(format!("{:.2}", server.spread(shape, |run| run.load_share)?.median))
    });
    section(
        &mut text,
        "Share of a core that other programs used meanwhile; from 0.10 on a figure is in doubt",
        measured,
        |server, shape| Some(format!("{:.2}", server.spread(shape, |run| run.others)?.median)),
    );
    text.push_str("Who they are:\n\n");
    for server in measured {
        // Writing to a text can't fail.
        let _ = writeln!(text, "- **{}**: {}", server.name, server.what);
    }
    text
}

/// A table with a row for each server and a column for each shape.
fn section(
    text: &mut String,
    title: &str,
    measured: &[Measured],
    cell: impl Fn(&Measured, usize) -> Option<String>,
) {
    let shapes: Vec<String> = SHAPES.into_iter().map(name_of).collect();
    let _ = writeln!(
        text,
        "{title}:\n\n| server | {} |\n|---|{}",
        shapes.join(" | "),
        "---|".repeat(shapes.len())
    );
    for server in measured {
        let cells: Vec<String> =
            (0..SHAPES.len()).map(|shape| cell(server, shape).unwrap_or_default()).collect();
        let _ = writeln!(text, "| {} | {} |", server.name, cells.join(" | "));
    }
    text.push('\n');
}
