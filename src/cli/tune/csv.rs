//! Every round as a line of comma-separated values, as RFC 4180 has them: for whoever wants to look closer.

use std::fmt::Write;

use super::cells::Cells;

const HEAD: &str = "pass,processes,threads,calls,errors,wrong,unanswered,closed,seconds,calls_per_second,p50_ms,p99_ms,server_cpus,load_cpus,other_cpus,disturbed";

/// A line of names, then one for each round, in the order of passes and within a pass of size.
pub(super) fn csv(cells: &Cells) -> String {
    let mut rounds: Vec<_> =
        cells.iter().flat_map(|cell| cell.rounds.iter().map(|round| (cell.setting, round))).collect();
    rounds.sort_by_key(|(setting, round)| (round.pass, *setting));
    let mut text = format!("{HEAD}\n");
    for (setting, round) in rounds {
        // Writing to a `String` can't fail. Numbers need no quotes.
        let _ = writeln!(
            text,
            "{},{},{},{},{},{},{},{},{:.3},{:.1},{:.4},{:.4},{:.3},{:.3},{:.3},{}",
            round.pass,
            setting.processes,
            setting.threads,
            round.calls,
            round.errors,
            round.wrong,
            round.unanswered,
            round.closed,
            round.elapsed.as_secs_f64(),
            round.rate,
            round.p50.as_secs_f64() * 1e3,
            round.p99.as_secs_f64() * 1e3,
            round.server_cpus,
            round.load_cpus,
            round.other_cpus,
            u8::from(round.is_disturbed),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::cells::samples::cells;
    use super::*;

    #[test]
    fn there_is_a_line_for_each_round_with_a_value_for_each_name() {
        let text = csv(&cells(&[((1, 1), &[100, 102]), ((2, 1), &[190])]));
        let expected = format!(
            "{HEAD}
0,1,1,100,0,0,0,0,1.000,100.0,10.0000,20.0000,0.500,0.250,0.000,0
0,2,1,190,0,0,0,0,1.000,190.0,10.0000,20.0000,0.500,0.250,0.000,0
1,1,1,102,0,0,0,0,1.000,102.0,10.0000,20.0000,0.500,0.250,0.000,0
"
        );
        assert_eq!(text, expected);
        assert!(text.lines().all(|line| line.split(',').count() == HEAD.split(',').count()));
    }
}
