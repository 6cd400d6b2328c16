//! What was measured as pictures: a panel for each shape of the load, a bar for each server.

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use tine::BoxError;

use super::support::numbers::{grouped, time};
use super::{Measured, SHAPES, name_of};

const WIDTH: u32 = 1000;
const BAR: i32 = 18;
const GAP: i32 = 6;
/// Above the bars of a panel, for its title.
const TITLE: i32 = 44;
/// Left of the bars, for names; right of them, for numbers.
const NAMES: i32 = 190;
const NUMBERS: i32 = 170;
const FONT: &str = "sans-serif";

/// `tine` stands out, the others don't compete.
const OURS: RGBColor = RGBColor(196, 78, 40);
const OTHERS: RGBColor = RGBColor(120, 144, 168);

/// Calls a second.
pub(crate) fn rates(measured: &[Measured], path: &Path) -> Result<(), BoxError> {
    let value = |server: &Measured, shape| Some(server.spread(shape, |run| run.rate)?.median);
    draw(measured, path, "calls a second", value, |rate| format!("{}/s", grouped(rate)))
}

/// The 99th percentile of latency.
pub(crate) fn latencies(measured: &[Measured], path: &Path) -> Result<(), BoxError> {
    let value = |server: &Measured, shape| Some(server.spread(shape, |run| run.p99.as_secs_f64())?.median);
    draw(measured, path, "99th percentile of latency", value, time)
}

fn draw(
    measured: &[Measured],
    path: &Path,
    what: &str,
    value: impl Fn(&Measured, usize) -> Option<f64>,
    show: impl Fn(f64) -> String,
) -> Result<(), BoxError> {
    let height = TITLE + i32::try_from(measured.len())? * (BAR + GAP) + GAP;
    let size = (WIDTH, u32::try_from(height)? * u32::try_from(SHAPES.len())?);
    let root = SVGBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE)?;
    for (shape, panel) in root.split_evenly((SHAPES.len(), 1)).into_iter().enumerate() {
        let title = format!("{}: {what}", SHAPES.get(shape).copied().map(name_of).unwrap_or_default());
        let bars: Vec<(&str, f64)> =
            measured.iter().filter_map(|server| Some((server.name, value(server, shape)?))).collect();
        draw_panel(&panel, &title, &bars, &show)?;
    }
    root.present()?;
    Ok(())
}

/// Bars from zero, so that their lengths compare as their values do.
fn draw_panel(
    panel: &DrawingArea<SVGBackend<'_>, Shift>,
    title: &str,
    bars: &[(&str, f64)],
    show: impl Fn(f64) -> String,
) -> Result<(), BoxError> {
    let text = |size: i32, at: HPos| (FONT, size).into_font().color(&BLACK).pos(Pos::new(at, VPos::Center));
    panel.draw_text(title, &text(16, HPos::Left), (NAMES, TITLE / 2))?;
    let longest = bars.iter().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);
    let room = f64::from(i32::try_from(WIDTH)? - NAMES - NUMBERS);
    let mut top = TITLE;
    for (name, value) in bars {
        #[expect(clippy::cast_possible_truncation, reason = "a share of some hundred pixels")]
        let end = NAMES + ((value / longest) * room) as i32;
        let color = if *name == "tine" { OURS } else { OTHERS };
        panel.draw(&Rectangle::new([(NAMES, top), (end, top + BAR)], color.filled()))?;
        let middle = top + BAR / 2;
        panel.draw_text(name, &text(13, HPos::Right), (NAMES - 8, middle))?;
        panel.draw_text(&show(*value), &text(13, HPos::Left), (end + 8, middle))?;
        top += BAR + GAP;
    }
    Ok(())
}
