//! Files and flags that nobody would write by mistake.

use super::*;

#[test]
fn a_hostile_file_is_refused_without_harm() {
    let size = 1 << 20;
    let nested = format!("threads = {}", "[".repeat(size));
    assert!(errors(&nested)[0].starts_with("1: this is not TOML: "), "nested");
    let tables = format!("{}x = 1", "a.".repeat(size / 2));
    assert!(!errors(&tables).is_empty());
    let mut many = String::new();
    for number in 0..size / 16 {
        many += &format!("key{number} = 1\n");
    }
    assert_eq!(errors(&many).len(), 21);
    let long = format!("{} = 1\nlog.slow = '1{}'", "x".repeat(size), "y".repeat(size));
    assert!(errors(&long).concat().len() < 2000);
}

/// Any values under known and unknown keys. Addresses have no letters, so that no test asks a name server.
fn toml_like() -> impl Strategy<Value = String> {
    let keys: Vec<&str> = KEYS.iter().map(|(key, _)| *key).collect();
    let key = prop_oneof![proptest::sample::select(keys), Just("listener"), Just("x"), Just("log.x.y")];
    let value = prop_oneof![
        "'[0-9:./ \\[\\]%-]{0,20}'",
        "'(unix:)?[a-z/]{0,9}'",
        "'[0-9]{0,25} ?([kKMGT]i?B|s|ms|days|y)?'",
        "-?[0-9]{0,25}",
        "0[xob][0-9a-f]{1,9}",
        "\\[(-?[0-9]{1,12}, ?)*\\]",
        "\\{ ?([a-z]{1,3} = 1)? ?\\}",
        "(true|nan|-inf|1e999|1979-05-27|'''|\"\\\\u0000\")",
    ];
    let header =
        prop_oneof![Just("[limits]"), Just("[[listener]]"), Just("[methods.'']"), Just("[log]"), Just("")];
    let line = (header, key, value).prop_map(|(header, key, value)| {
        let name = if header.is_empty() { key } else { key.rsplit('.').next().unwrap_or(key) };
        format!("{header}\n{name} = {value}\n")
    });
    proptest::collection::vec(line, 0..6).prop_map(|lines| lines.concat())
}

proptest! {
    #[test]
    fn no_values_make_it_panic(text in toml_like(), processes: Option<usize>, threads: Option<usize>) {
        let overrides = Overrides { listen: Vec::new(), processes, threads };
        if let Ok(config) = check(&source(&text), &overrides) {
            prop_assert!(!config.listeners.is_empty());
            prop_assert!((1..=1024).contains(&config.processes));
            prop_assert!((1..=4096).contains(&config.threads));
            prop_assert!(!config.describe().is_empty());
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in "[\\PC\\n\\t\\[\\]='\"#{},.]{0,120}") {
        if let Err(error) = check(&source(&text), &Overrides::default()) {
            prop_assert!(!error.to_string().is_empty());
        }
    }
}
