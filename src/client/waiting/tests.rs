//! Who gets which answer, and what an error without an id is about.

use super::super::answer;
use super::*;

fn place(length: usize) -> Place {
    Place { end: length, length, is_readable: true }
}

fn unreadable() -> Place {
    Place { is_readable: false, ..place(9) }
}

/// Sends a group.
fn send(waiting: &mut Waiting, first: u64, places: &[Place], is_array: bool) {
    waiting.join(first, places, is_array, Arc::default());
    waiting.goes(first);
}

fn waiting(groups: &[(u64, &[usize], bool)]) -> Waiting {
    let mut waiting = Waiting::default();
    for (first, lengths, is_array) in groups {
        let places: Vec<Place> = lengths.iter().copied().map(place).collect();
        send(&mut waiting, *first, &places, *is_array);
    }
    waiting
}

fn settle(waiting: &mut Waiting, message: &str) -> Result<Settled, String> {
    waiting.settle(answer::read(message.as_bytes()).expect("an answer"))
}

/// What each call of a group came to: its result, its error's code, or nothing yet.
fn outcomes(waiting: &mut Waiting, first: u64) -> Vec<String> {
    let told = |outcome: Option<Outcome>| match outcome {
        None => "open".to_owned(),
        Some(Ok(result)) => result.get().to_owned(),
        Some(Err(ClientError::Remote(error))) => error.code.to_string(),
        Some(Err(ClientError::Protocol(_))) => "protocol".to_owned(),
        Some(Err(other)) => panic!("{other}"),
    };
    waiting.leave(first, true).into_iter().map(told).collect()
}

fn result(id: u64) -> String {
    format!(r#"{{"out":"echo","result":{},"id":{id}}}"#, id.saturating_mul(10))
}

fn error(code: i32, data: &str) -> String {
    format!(r#"{{"out":"error","result":{{"code":{code},"message":"no","data":{data}}}}}"#)
}

#[test]
fn each_answer_reaches_who_asked_in_whatever_order_they_come() {
    let mut waiting = waiting(&[(1, &[9], false), (2, &[9, 9, 9], false), (5, &[9], false)]);
    for id in [4, 5, 2, 1] {
        assert!(settle(&mut waiting, &result(id)).is_ok());
    }
    assert!(waiting.is_complete(1) && waiting.is_complete(5) && !waiting.is_complete(2));
    assert_eq!(outcomes(&mut waiting, 2), ["20", "open", "40"]);
    assert_eq!(outcomes(&mut waiting, 5), ["50"]);
    assert_eq!(outcomes(&mut waiting, 1), ["10"]);
}

#[test]
fn a_late_answer_reaches_nobody_and_harms_nobody() {
    let mut waiting = waiting(&[(1, &[9], false), (2, &[9, 9], false), (4, &[9], false)]);
    assert_eq!(outcomes(&mut waiting, 2), ["open", "open"]);
    for id in [2, 3, 4] {
        assert!(settle(&mut waiting, &result(id)).is_ok());
    }
    assert_eq!(outcomes(&mut waiting, 1), ["open"]);
    assert_eq!(outcomes(&mut waiting, 4), ["40"]);
}

#[test]
fn an_answer_to_what_was_never_asked_and_a_second_one_are_refused() {
    for id in [0, 3, u64::MAX] {
        let mut waiting = waiting(&[(1, &[9, 9], false)]);
        let why = settle(&mut waiting, &result(id)).expect_err("refused");
        assert!(why.contains(&format!("id {id}")), "{why}");
    }
    let mut waiting = waiting(&[(1, &[9, 9], false)]);
    assert!(settle(&mut waiting, &result(1)).is_ok());
    assert!(settle(&mut waiting, &result(1)).expect_err("refused").contains("second"));
}

#[test]
fn only_sleepers_whose_last_answer_came_are_woken() {
    let mut waiting = waiting(&[(1, &[9, 9], false), (3, &[9], false)]);
    waiting.sleeps(1, true);
    for (id, woken) in [(1, 0), (3, 0), (2, 1)] {
        assert_eq!(settle(&mut waiting, &result(id)).expect("assigned").wake.len(), woken, "{id}");
    }
    assert_eq!(waiting.sleepers().count(), 1);
    waiting.sleeps(1, false);
    assert!(waiting.a_sleeper().is_none());
}

#[test]
fn an_error_without_an_id_is_about_the_only_message() {
    let mut alone = waiting(&[(1, &[9], false)]);
    assert!(!settle(&mut alone, &error(-32600, "null")).expect("assigned").is_leaving);
    assert_eq!(outcomes(&mut alone, 1), ["-32600"]);
    let mut array = waiting(&[(1, &[9, 9], true)]);
    assert!(settle(&mut array, &error(-32600, "null")).is_ok());
    assert_eq!(outcomes(&mut array, 1), ["-32600", "-32600"]);
}

#[test]
fn an_error_without_an_id_is_about_the_one_array_whatever_else_is_or_was_on_its_way() {
    for code in [-32000, -32600, -32700] {
        let mut many =
            waiting(&[(1, &[9], false), (2, &[9, 9], true), (4, &[9, 9], false), (6, &[9], false)]);
        many.tells(place(9));
        assert_eq!(outcomes(&mut many, 6), ["open"], "given up");
        // Not sent before the server said this.
        many.join(7, &[place(9), place(9)], true, Arc::default());
        assert!(!settle(&mut many, &error(code, "null")).expect("assigned").is_leaving);
        assert_eq!(outcomes(&mut many, 2), [code.to_string(), code.to_string()]);
        for id in [1, 5] {
            assert!(settle(&mut many, &result(id)).is_ok());
        }
        assert_eq!(outcomes(&mut many, 1), ["10"]);
        assert_eq!(outcomes(&mut many, 4), ["open", "50"]);
        assert_eq!(outcomes(&mut many, 7), ["open", "open"]);
    }
}

#[test]
fn an_error_about_nothing_that_is_waited_for_harms_nobody() {
    let mut told = waiting(&[(1, &[9], false)]);
    told.tells(place(9));
    for code in [-32600, -32700, -32000] {
        assert!(!settle(&mut told, &error(code, "null")).expect("dropped").is_leaving, "{code}");
    }
    assert_eq!(outcomes(&mut told, 1), ["open"]);
    // The array that was given up has its error now, so the next one is the next one's.
    let mut given_up = waiting(&[(1, &[9, 9], true), (3, &[9], false)]);
    assert_eq!(outcomes(&mut given_up, 1), ["open", "open"]);
    assert!(settle(&mut given_up, &error(-32000, "null")).is_ok());
    send(&mut given_up, 4, &[place(9), place(9)], true);
    assert!(settle(&mut given_up, &error(-32000, "null")).is_ok());
    assert_eq!(outcomes(&mut given_up, 4), ["-32000", "-32000"]);
    assert_eq!(outcomes(&mut given_up, 3), ["open"]);
    assert!(settle(&mut waiting(&[]), &error(-32600, "null")).is_err(), "nothing was ever sent");
}

#[test]
fn of_several_arrays_the_one_that_has_no_answer_in_the_end_was_meant() {
    let member = |id: u64| format!(r#"{{"jsonrpc":"2.0","result":{id}0,"id":{id}}}"#);
    let mut two = waiting(&[(1, &[9, 9], true), (3, &[9, 9], true), (5, &[9], false)]);
    two.sleeps(3, true);
    assert!(settle(&mut two, &error(-32000, "null")).expect("held").is_leaving);
    assert!(two.is_in_doubt());
    assert_eq!(settle(&mut two, &format!("[{},{}]", member(1), member(2))).expect("assigned").wake.len(), 1);
    assert_eq!(outcomes(&mut two, 1), ["10", "20"]);
    assert_eq!(outcomes(&mut two, 3), ["-32000", "-32000"]);
    assert_eq!(outcomes(&mut two, 5), ["open"]);
    // As many errors as arrays; but one of them may have run if these say different things.
    for (second, expected) in [(-32000, "-32000"), (-32603, "protocol")] {
        let mut both = waiting(&[(1, &[9, 9], true), (3, &[9, 9], true), (5, &[9], false)]);
        assert!(settle(&mut both, &error(-32000, "null")).is_ok());
        assert!(settle(&mut both, &error(second, "null")).is_ok());
        assert_eq!(outcomes(&mut both, 1), [expected, expected]);
        assert_eq!(outcomes(&mut both, 3), [expected, expected]);
        assert_eq!(outcomes(&mut both, 5), ["open"]);
    }
}

#[test]
fn an_array_that_may_have_run_is_not_told_that_it_was_not() {
    let mut doubtful = waiting(&[(1, &[9, 9], true), (3, &[9, 9], true), (5, &[9], false)]);
    assert_eq!(outcomes(&mut doubtful, 1), ["open", "open"]);
    assert!(settle(&mut doubtful, &error(-32000, "null")).expect("assigned").is_leaving);
    assert_eq!(outcomes(&mut doubtful, 3), ["protocol", "protocol"]);
    assert_eq!(outcomes(&mut doubtful, 5), ["open"]);
    // The same when the other is given up while it is not known yet.
    let mut doubtful = waiting(&[(1, &[9, 9], true), (3, &[9, 9], true)]);
    doubtful.sleeps(3, true);
    assert!(settle(&mut doubtful, &error(-32000, "null")).is_ok());
    assert_eq!(outcomes(&mut doubtful, 1), ["open", "open"]);
    assert_eq!(doubtful.look_again().wake.len(), 1);
    assert_eq!(outcomes(&mut doubtful, 3), ["protocol", "protocol"]);
    // An answer that comes late after all leaves no doubt, and one that names its calls is believed over a guess.
    let mut late = waiting(&[(1, &[9, 9], true), (3, &[9, 9], true)]);
    assert_eq!(outcomes(&mut late, 1), ["open", "open"]);
    assert!(settle(&mut late, &result(2)).is_ok());
    assert!(settle(&mut late, &error(-32000, "null")).is_ok());
    assert!(settle(&mut late, &result(4)).is_ok());
    assert_eq!(outcomes(&mut late, 3), ["-32000", "40"]);
}

#[test]
fn a_call_that_the_server_cannot_read_has_its_error_though_that_names_none() {
    let mut among = waiting(&[(1, &[9], false), (2, &[9, 9], true)]);
    among.tells(place(9));
    send(&mut among, 4, &[unreadable()], false);
    assert!(!settle(&mut among, &error(-32700, "null")).expect("assigned").is_leaving);
    assert_eq!(outcomes(&mut among, 4), ["-32700"]);
    among.tells(unreadable());
    assert!(settle(&mut among, &error(-32700, "null")).is_ok());
    assert_eq!(outcomes(&mut among, 1), ["open"]);
    assert_eq!(outcomes(&mut among, 2), ["open", "open"]);
    let mut row = waiting(&[(1, &[9], false)]);
    send(&mut row, 2, &[place(9), unreadable(), unreadable()], false);
    for _ in 0..2 {
        assert!(settle(&mut row, &error(-32700, "null")).is_ok());
    }
    assert_eq!(outcomes(&mut row, 2), ["open", "-32700", "-32700"]);
    assert_eq!(outcomes(&mut row, 1), ["open"]);
}

#[test]
fn without_any_array_the_call_that_has_no_answer_in_the_end_was_meant() {
    let two: [&[(u64, &[usize], bool)]; 2] = [&[(1, &[9], false), (2, &[9], false)], &[(1, &[9, 9], false)]];
    for groups in two {
        let mut waiting = waiting(groups);
        assert!(settle(&mut waiting, &error(-32600, "null")).expect("held").is_leaving, "{groups:?}");
        assert!(settle(&mut waiting, &result(1)).is_ok(), "{groups:?}");
        let first = groups.last().expect("a group").0;
        assert_eq!(outcomes(&mut waiting, first).last().expect("a call"), "-32600", "{groups:?}");
    }
}

#[test]
fn too_large_is_the_first_message_over_the_limit() {
    let groups: [(u64, &[usize], bool); 3] =
        [(1, &[10], false), (2, &[10, 11, 12], false), (5, &[99], false)];
    let mut rows = waiting(&groups);
    assert!(settle(&mut rows, &error(-32003, r#"{"limit":10}"#)).is_ok());
    assert_eq!(outcomes(&mut rows, 2), ["open", "-32003", "open"]);
    assert_eq!(outcomes(&mut rows, 5), ["open"]);
    let mut array = waiting(&[(1, &[9], false), (2, &[11, 11], true)]);
    assert!(settle(&mut array, &error(-32003, r#"{"limit":10}"#)).is_ok());
    assert_eq!(outcomes(&mut array, 2), ["-32003", "-32003"]);
    assert!(settle(&mut waiting(&groups), &error(-32003, r#"{"limit":99}"#)).is_err());
    let mut told = waiting(&groups);
    told.tells(place(100));
    assert!(settle(&mut told, &error(-32003, r#"{"limit":99}"#)).expect("dropped").is_leaving);
    assert_eq!(outcomes(&mut told, 5), ["open"]);
}

#[test]
fn what_an_array_of_answers_lacks_never_comes() {
    let member = |id: u64| format!(r#"{{"jsonrpc":"2.0","result":{id}0,"id":{id}}}"#);
    let mut lacking = waiting(&[(1, &[9, 9, 9], true)]);
    assert!(settle(&mut lacking, &format!("[{},{}]", member(3), member(1))).is_ok());
    assert_eq!(outcomes(&mut lacking, 1), ["10", "protocol", "30"]);
    let mut refused = waiting(&[(1, &[9, 9], true)]);
    let nameless = r#"{"jsonrpc":"2.0","error":{"code":-32600,"message":"no"},"id":null}"#;
    assert!(settle(&mut refused, &format!("[{nameless},{}]", member(2))).is_ok());
    assert_eq!(outcomes(&mut refused, 1), ["-32600", "20"]);
}
