//! Numbers as a person reads them.

use std::time::Duration;

/// A duration with three significant digits and the unit that fits, written as a setting is.
pub(super) fn duration(time: Duration) -> String {
    let ns = time.as_secs_f64() * 1e9;
    // A unit changes where rounding to three digits would give 1000 of the smaller one.
    let (value, unit) = match ns {
        ns if ns < 999.5 => return format!("{ns:.0}ns"),
        ns if ns < 999.5e3 => (ns / 1e3, "us"),
        ns if ns < 999.5e6 => (ns / 1e6, "ms"),
        ns => (ns / 1e9, "s"),
    };
    let decimals = match value {
        value if value < 9.995 => 2,
        value if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}{unit}")
}

/// A count with its thousands apart.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count of things by their name, which takes an s for more than one.
pub(super) fn things(number: u64, name: &str) -> String {
    format!("{} {name}{}", count(number), if number == 1 { "" } else { "s" })
}

/// A number that is none or more, rounded, with its thousands apart.
pub(super) fn rounded(number: f64) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a cast of a float saturates
    let whole = number.round() as u64;
    count(whole)
}

/// Calls a second, as they were asked for.
pub(super) fn rate(rate: f64) -> String {
    if rate.fract() == 0.0 { rounded(rate) } else { rate.to_string() }
}

/// A share of `whole` in percent; what is little is not nothing.
pub(super) fn percent(part: u64, whole: u64) -> String {
    #[expect(clippy::cast_precision_loss)] // for a person's eyes
    let share = part as f64 / whole.max(1) as f64 * 100.0;
    if part > 0 && share < 0.01 { "< 0.01 %".to_owned() } else { format!("{share:.2} %") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_three_digits_and_a_unit() {
        for (ns, text) in [
            (0, "0ns"),
            (999, "999ns"),
            (1_000, "1.00us"),
            (9_994, "9.99us"),
            (9_996, "10.0us"),
            (99_960, "100us"),
            (482_304, "482us"),
            (999_499, "999us"),
            (999_500, "1.00ms"),
            (12_345_678, "12.3ms"),
            (1_500_000_000, "1.50s"),
            (3_600_000_000_000, "3600s"),
        ] {
            assert_eq!(duration(Duration::from_nanos(ns)), text, "{ns}");
        }
    }

    #[test]
    fn counts_have_their_thousands_apart() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_312_040, "1,312,040")] {
            assert_eq!(count(number), text);
        }
        assert_eq!(rounded(131_204.6), "131,205");
        assert_eq!(
            (things(1, "call"), things(1_000, "call")),
            ("1 call".to_owned(), "1,000 calls".to_owned())
        );
    }

    #[test]
    fn a_small_share_is_not_none() {
        for (part, whole, text) in
            [(0, 10, "0.00 %"), (1, 3, "33.33 %"), (1, 1_000_000, "< 0.01 %"), (0, 0, "0.00 %")]
        {
            assert_eq!(percent(part, whole), text);
        }
    }
}
