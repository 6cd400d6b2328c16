//! The result as a page for a person.

use std::fmt::Write;

use super::{Measured, picture};
use crate::cli::{page, units};

/// The load may have been what was measured when it used more than this share of its core.
const BUSY: f64 = 0.9;

/// A server that answers less than this share of the calls due falls behind.
const REACHED: f64 = 0.98;

const PERCENTILES: [f64; 6] = [50.0, 75.0, 90.0, 99.0, 99.9, 99.99];

pub(super) fn text(measured: &Measured<'_>) -> String {
    let mut text = String::new();
    // Writing to a String can't fail.
    let _ = write_page(&mut text, measured);
    page::fit(&text)
}

fn write_page(page: &mut String, measured: &Measured<'_>) -> std::fmt::Result {
    let Measured { args, report, .. } = measured;
    let pace = match args.rate {
        Some(1.0) => "1 call due a second".to_owned(),
        Some(rate) => format!("{} calls due a second", units::rate(rate)),
        None => "closed loop".to_owned(),
    };
    writeln!(
        page,
        "{} at {}, {pace}\n{}, {} in flight on each, {} measured{}\n",
        args.method,
        args.to,
        units::things(args.connections as u64, "connection"),
        units::things(args.pipeline as u64, "call"),
        units::duration(report.elapsed),
        if measured.interrupted { " until Ctrl-C" } else { "" },
    )?;
    writeln!(page, "  {:<12}{:>14}", "calls/s", units::rounded(report.rate()))?;
    for (name, count) in [
        ("calls", report.calls),
        ("errors", report.errors),
        ("wrong", report.wrong),
        ("unanswered", report.unanswered),
        ("closed", report.closed),
    ] {
        writeln!(page, "  {name:<12}{:>14}", units::count(count))?;
    }
    if report.calls > 0 {
        let since = if args.rate.is_some() { "when a call was due" } else { "when it was sent" };
        writeln!(page, "\n  latency, since {since}")?;
        for percent in PERCENTILES {
            let name = format!("{percent} %");
            writeln!(page, "  {name:<12}{:>14}", units::duration(report.percentile(percent)))?;
        }
        writeln!(page, "  {:<12}{:>14}\n", "max", units::duration(report.max()))?;
        page.push_str(&picture::of(report));
    }
    if let Some(rate) = args.rate
        && report.arrived > 0
        && report.rate() < rate * REACHED
    {
        writeln!(
            page,
            "\n  {} of the {} calls due each second were answered: the others waited",
            units::rounded(report.rate()),
            units::rate(rate)
        )?;
    }
    write_cpu(page, measured)?;
    for (what, first) in [("error", &report.first_error), ("wrong", &report.first_wrong)] {
        if let Some(first) = first {
            writeln!(page, "\n  first {what}: {first}")?;
        }
    }
    Ok(())
}

fn write_cpu(page: &mut String, measured: &Measured<'_>) -> std::fmt::Result {
    let report = &measured.report;
    if let Some(cpu) = measured.server_cpu {
        let per_call = measured.server_cpu_per_call().map(units::duration);
        let cores = cpu.as_secs_f64() / report.elapsed.as_secs_f64().max(1e-9);
        writeln!(
            page,
            "\n  server CPU: {} for each call, {cores:.2} cores",
            per_call.as_deref().unwrap_or("no call to divide by;")
        )?;
    }
    if report.load_share() > BUSY {
        writeln!(
            page,
            "\n  the load used {:.0} % of a core: the server may be able to do more",
            report.load_share() * 100.0
        )?;
    }
    Ok(())
}
