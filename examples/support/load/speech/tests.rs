use super::*;

const WORK: Work = Work::Echo { bytes: 10 };

/// The answer of a service that echoes, and what is found in it at each length of what has arrived.
fn found(speech: Speech, answer: &[u8]) -> Found {
    let mut looked = 0;
    for length in 0..answer.len() {
        let found = speech.find_answer(&answer[..length], looked);
        assert_eq!(found, Ok(None), "{speech:?}: {length} of {}", answer.len());
        looked = length;
    }
    // What comes behind it is no part of it.
    let more = [answer, b"more\r\n\r\n"].concat();
    let found = speech.find_answer(&more, looked).expect("an answer").expect("all of it");
    assert_eq!(found.end, answer.len(), "{speech:?}");
    found
}

fn judged(speech: Speech, answer: &[u8], message: u64) -> Vec<Verdict> {
    let Found { body, status, .. } = found(speech, answer);
    speech.judge(&mut Vec::new(), (&answer[body], status), WORK, (7, message))
}

fn framed(speech: Speech, status: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    match speech.framing {
        Framing::Length => [&u32::try_from(length).unwrap().to_le_bytes(), body.as_bytes()].concat(),
        Framing::Stream => format!("{body}\n").into(),
        Framing::Header => format!("Content-Length: {length}\r\n\r\n{body}").into(),
        Framing::Http => format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}").into(),
    }
}

/// What the service answers to these calls.
fn body(speech: Speech, calls: Range<u64>) -> String {
    let one = |call: u64| {
        let text = format!("7.{call}.7.{call}.7.{call}.")[..10].to_owned();
        match speech.saying {
            Saying::Native { ids: false } => format!(r#"{{"out":"echo","result":"{text}"}}"#),
            Saying::Native { ids: true } => format!(r#"{{"out":"echo","result":"{text}","id":{call}}}"#),
            Saying::Bare => format!(r#""{text}""#),
            _ => format!(r#"{{"jsonrpc":"2.0","result":["{text}"],"id":{call}}}"#),
        }
    };
    let all: Vec<String> = calls.map(one).collect();
    if speech.calls() > 1 { format!("[{}]", all.join(",")) } else { all.concat() }
}

#[test]
fn the_right_answer_is_right_and_any_other_calls_is_not() {
    for speech in Speech::ALL.iter().copied() {
        let right = framed(speech, "200 OK", &body(speech, speech.numbers(3)));
        let verdicts = judged(speech, &right, 3);
        assert_eq!(verdicts.len() as u64, speech.calls(), "{speech:?}");
        assert!(verdicts.iter().all(|verdict| *verdict == Verdict::Right), "{speech:?}: {verdicts:?}");
        let other = framed(speech, "200 OK", &body(speech, speech.numbers(4)));
        let verdicts = judged(speech, &other, 3);
        assert!(verdicts.iter().any(|verdict| matches!(verdict, Verdict::Wrong(_))), "{speech:?}");
        if speech.framing == Framing::Http {
            let verdicts = judged(speech, &framed(speech, "502 Bad Gateway", &body(speech, 3..4)), 3);
            assert!(verdicts.iter().any(|verdict| matches!(verdict, Verdict::Wrong(_))), "{speech:?}");
        }
    }
}

#[test]
fn an_error_is_one_in_its_own_form_and_with_its_own_status_alone() {
    let error = r#"{"code":-32002,"message":"m","data":{"method":"echo","cause":"SIGKILL"}}"#;
    let failure = Failure { code: -32002, method: "echo".into(), cause: "SIGKILL".into() };
    for speech in Speech::ALL.iter().copied() {
        let message = 2;
        let body = |call: u64| match speech.saying {
            Saying::Native { ids: false } => format!(r#"{{"out":"error","result":{error}}}"#),
            Saying::Native { ids: true } => format!(r#"{{"out":"error","result":{error},"id":{call}}}"#),
            Saying::Bare => error.to_owned(),
            _ => format!(r#"{{"jsonrpc":"2.0","error":{error},"id":{call}}}"#),
        };
        let all: Vec<String> = speech.numbers(message).map(body).collect();
        let all = if speech.calls() > 1 { format!("[{}]", all.join(",")) } else { all.concat() };
        let is_bare = speech.saying == Saying::Bare;
        let (right, wrong) =
            if is_bare { ("502 Bad Gateway", "200 OK") } else { ("200 OK", "502 Bad Gateway") };
        let verdicts = judged(speech, &framed(speech, right, &all), message);
        assert_eq!(verdicts.len() as u64, speech.calls(), "{speech:?}");
        assert!(
            verdicts.iter().all(|verdict| *verdict == Verdict::Error(failure.clone())),
            "{speech:?}: {verdicts:?}"
        );
        if speech.framing == Framing::Http {
            let verdicts = judged(speech, &framed(speech, wrong, &all), message);
            assert!(matches!(verdicts[..], [Verdict::Wrong(_)]), "{speech:?}: {verdicts:?}");
        }
    }
}

#[test]
fn an_answer_says_which_message_it_is_to_unless_the_order_does() {
    for speech in Speech::ALL.iter().copied() {
        let expected = (!speech.is_ordered()).then_some(5);
        let answer = body(speech, speech.numbers(5));
        assert_eq!(speech.message_of(answer.as_bytes()), expected, "{speech:?}");
    }
}

#[test]
fn a_batch_must_be_answered_whole_and_each_call_once() {
    let speech = Speech::new(Framing::Length, Saying::Batch { calls: 3 });
    let wrong = |calls: &[u64]| {
        let single = Speech::new(Framing::Length, Saying::JsonRpc);
        let all: Vec<String> = calls.iter().map(|call| body(single, *call..call + 1)).collect();
        let verdicts = judged(speech, &framed(speech, "", &format!("[{}]", all.join(","))), 1);
        verdicts.iter().filter(|verdict| matches!(verdict, Verdict::Wrong(_))).count()
    };
    assert_eq!(wrong(&[3, 4, 5]), 0);
    assert_eq!(wrong(&[5, 3, 4]), 0);
    assert_eq!(wrong(&[3, 5]), 1);
    assert_eq!(wrong(&[3, 4, 4, 5]), 1);
    assert_eq!(wrong(&[3, 4, 5, 6]), 1);
    assert!(matches!(judged(speech, &framed(speech, "", "{}"), 1)[..], [Verdict::Wrong(_)]));
}

#[test]
fn interim_answers_are_passed_over_and_goodbyes_heard() {
    let speech = Speech::new(Framing::Http, Saying::Bare);
    let go_on = "HTTP/1.1 100 Continue\r\n\r\n";
    let answer = format!(
        "{go_on}{go_on}HTTP/1.1 504 Gateway Timeout\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
    );
    let found = found(speech, answer.as_bytes());
    assert_eq!((found.status, found.is_goodbye), (504, true));
    assert_eq!(&answer[found.body], "{}");
    assert!(speech.find_answer(b"HTTP/1.1 200 OK\r\n\r\n", 0).is_err());
    assert!(speech.find_answer(b"what?\r\nContent-Length: 1\r\n\r\n1", 0).is_err());
}
