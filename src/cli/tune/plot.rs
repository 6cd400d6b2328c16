//! Heat maps as SVG: processes upwards, threads to the right, a figure and a colour in each cell.
//!
//! `report` asks for one of throughput and one of p99. What is good is dark: rates are darker the higher, times the
//! lower. Colours follow the logarithm, as settings differ by factors. The recommended cell has a frame; cells in
//! which calls failed are struck out; settings that were not measured stay empty.

use std::collections::BTreeSet;

use plotters::drawing::DrawingAreaErrorKind;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::cells::{Cell, Cells};
use super::grid::Setting;
use super::table;
use crate::cli::units;

const CELL: (i32, i32) = (84, 48);
/// Room for the labels on the left, and for the heading above; the same again right and below is too much.
const LEFT: i32 = 92;
const TOP: i32 = 64;
const RIGHT: i32 = 24;
const BOTTOM: i32 = 60;
const LEAST_WIDTH: i32 = 640;

const PALE: RGBColor = RGBColor(237, 244, 247);
const DARK: RGBColor = RGBColor(10, 80, 104);
const EMPTY: RGBColor = RGBColor(246, 246, 246);
const INK: RGBColor = RGBColor(34, 34, 34);
const FRAME: RGBColor = RGBColor(214, 84, 18);

/// What a map shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Figure {
    Throughput,
    P99,
}

impl Figure {
    fn heading(self) -> &'static str {
        match self {
            Figure::Throughput => "calls a second",
            Figure::P99 => "p99 of the time to an answer",
        }
    }

    fn value(self, cell: &Cell) -> f64 {
        match self {
            Figure::Throughput => cell.rate(),
            Figure::P99 => cell.p99().as_secs_f64(),
        }
    }

    fn label(self, cell: &Cell) -> String {
        match self {
            Figure::Throughput => table::rate(cell.rate()),
            Figure::P99 => units::duration(cell.p99()),
        }
    }

    /// 0 for the worst value, 1 for the best.
    fn goodness(self, value: f64, least: f64, most: f64) -> f64 {
        let span = (most / least).ln();
        if !span.is_finite() || span <= 0.0 || value <= 0.0 {
            return 1.0;
        }
        let share = ((value / least).ln() / span).clamp(0.0, 1.0);
        match self {
            Figure::Throughput => share,
            Figure::P99 => 1.0 - share,
        }
    }
}

/// The map as the text of an SVG file; `title` says of what.
///
/// # Errors
///
/// What the drawing library says; there is no file or device that could fail.
pub(super) fn heat_map(
    figure: Figure,
    title: &str,
    cells: &Cells,
    recommended: Option<Setting>,
) -> Result<String, String> {
    let mut svg = String::new();
    draw(&mut svg, figure, title, cells, recommended)
        .map_err(|error| format!("the heat map can't be drawn: {error}"))?;
    Ok(svg)
}

type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

fn draw(
    svg: &mut String,
    figure: Figure,
    title: &str,
    cells: &Cells,
    recommended: Option<Setting>,
) -> Result<(), Box<dyn std::error::Error>> {
    let axis = |count: fn(Setting) -> usize| -> Vec<usize> {
        cells.iter().map(|cell| count(cell.setting)).collect::<BTreeSet<_>>().into_iter().collect()
    };
    let (threads, processes) = (axis(|setting| setting.threads), axis(|setting| setting.processes));
    let (columns, rows) = (i32::try_from(threads.len())?, i32::try_from(processes.len())?);
    let size = ((LEFT + columns * CELL.0 + RIGHT).max(LEAST_WIDTH), TOP + rows * CELL.1 + BOTTOM);
    let area = SVGBackend::with_string(svg, (size.0.try_into()?, size.1.try_into()?)).into_drawing_area();
    area.fill(&WHITE)?;

    let left = TextStyle::from(("sans-serif", 16).into_font()).color(&INK);
    let centre = |size: i32| {
        TextStyle::from(("sans-serif", size).into_font())
            .color(&INK)
            .pos(Pos::new(HPos::Center, VPos::Center))
    };
    area.draw_text(&format!("{}: {title}", figure.heading()), &left, (16, 16))?;
    let middle = LEFT + columns * CELL.0 / 2;
    area.draw_text("threads in each process", &centre(14), (middle, TOP + rows * CELL.1 + 44))?;
    area.draw_text("processes", &centre(14), (LEFT / 2, TOP - 14))?;
    for (column, count) in (0..).zip(&threads) {
        let at = (LEFT + column * CELL.0 + CELL.0 / 2, TOP + rows * CELL.1 + 16);
        area.draw_text(&count.to_string(), &centre(14), at)?;
    }
    let values = || cells.good().map(|cell| figure.value(cell)).filter(|value| *value > 0.0);
    let (least, most) = (values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max));
    for (row, &process_count) in (0..).zip(processes.iter().rev()) {
        let top = TOP + row * CELL.1;
        area.draw_text(&process_count.to_string(), &centre(14), (LEFT - 20, top + CELL.1 / 2))?;
        for (column, &thread_count) in (0..).zip(&threads) {
            let corner = (LEFT + column * CELL.0, top);
            let setting = Setting::new(process_count, thread_count);
            match cells.get(setting) {
                None => square(&area, corner, 2, EMPTY.filled())?,
                Some(cell) => {
                    let goodness = figure.goodness(figure.value(cell), least, most);
                    let (fill, ink) = if cell.is_good() { colours(goodness) } else { (EMPTY, INK) };
                    square(&area, corner, 2, fill.filled())?;
                    let style = centre(13).color(&ink);
                    area.draw_text(
                        &figure.label(cell),
                        &style,
                        (corner.0 + CELL.0 / 2, corner.1 + CELL.1 / 2),
                    )?;
                    if !cell.is_good() {
                        let ends =
                            [(corner.0 + 4, corner.1 + CELL.1 - 4), (corner.0 + CELL.0 - 4, corner.1 + 4)];
                        area.draw(&PathElement::new(ends, INK.stroke_width(1)))?;
                    }
                }
            }
        }
    }
    // After all cells, or a neighbour would cover its edge.
    if let Some(setting) = recommended
        && let (Ok(column), Some(row)) = (
            threads.binary_search(&setting.threads),
            processes.iter().rev().position(|&count| count == setting.processes),
        )
    {
        let corner = (LEFT + i32::try_from(column)? * CELL.0, TOP + i32::try_from(row)? * CELL.1);
        square(&area, corner, 1, FRAME.stroke_width(3))?;
    }
    area.present()?;
    Ok(())
}

fn square(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    corner: (i32, i32),
    gap: i32,
    style: ShapeStyle,
) -> Drawn {
    let other = (corner.0 + CELL.0 - gap, corner.1 + CELL.1 - gap);
    area.draw(&Rectangle::new([(corner.0 + gap, corner.1 + gap), other], style))
}

/// The colour of a cell, and one that can be read on it.
fn colours(goodness: f64) -> (RGBColor, RGBColor) {
    let mix = |from: u8, to: u8| {
        let mixed = f64::from(from) + (f64::from(to) - f64::from(from)) * goodness;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between two u8")]
        let mixed = mixed.round() as u8;
        mixed
    };
    let fill = RGBColor(mix(PALE.0, DARK.0), mix(PALE.1, DARK.1), mix(PALE.2, DARK.2));
    (fill, if goodness > 0.5 { WHITE } else { INK })
}

#[cfg(test)]
mod tests {
    use super::super::cells::Round;
    use super::super::cells::samples::{cells, round};
    use super::*;

    #[test]
    fn a_map_has_every_cell_its_figure_and_a_frame() {
        let mut cells = cells(&[((1, 1), &[100]), ((1, 2), &[190]), ((2, 1), &[1_850])]);
        cells.add(Setting::new(4, 1), Round { errors: 1, ..round(0, 55) });
        let svg = heat_map(Figure::Throughput, "sleep <5 & more>", &cells, Some(Setting::new(1, 2)))
            .expect("drawn");
        for text in
            ["<svg", "</svg>", "calls a second", "1,850", "190", "55.0", "#D65412", "threads in each process"]
        {
            assert!(svg.contains(text), "{text} is not in\n{svg}");
        }
        assert!(svg.contains("&lt;5 &amp; more&gt;"), "text is escaped:\n{svg}");
        let p99 = heat_map(Figure::P99, "sleep", &cells, None).expect("drawn");
        assert!(p99.contains("20.0ms") && !p99.contains("#D65412"), "{p99}");
    }

    #[test]
    fn nothing_measured_is_an_empty_map() {
        let svg = heat_map(Figure::P99, "sleep", &Cells::default(), None).expect("drawn");
        assert!(svg.contains("</svg>"));
    }

    #[test]
    fn high_rates_are_good_and_high_times_bad() {
        for (value, share) in [(10.0, 0.0), (100.0, 0.5), (1000.0, 1.0), (5000.0, 1.0)] {
            assert!((Figure::Throughput.goodness(value, 10.0, 1000.0) - share).abs() < 1e-9);
            assert!((Figure::P99.goodness(value, 10.0, 1000.0) - (1.0 - share)).abs() < 1e-9);
        }
        // One value alone, or none.
        assert!((Figure::P99.goodness(3.0, 3.0, 3.0) - 1.0).abs() < 1e-9);
        assert!((Figure::P99.goodness(0.0, f64::INFINITY, 0.0) - 1.0).abs() < 1e-9);
    }
}
