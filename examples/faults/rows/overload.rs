//! More load than capacity, and clients that are a nuisance.

use std::time::Duration;

use tine::BoxError;

use super::{Part, Row};
use crate::Extent;
use crate::judge::Judge;
use crate::support::load::Load;
use crate::support::load::content::Work;
use crate::support::load::group::{Group, Life, Reading, Sending};
use crate::support::load::speech::Speech;
use crate::support::proc;
use crate::support::service::{PATIENCE, Service};

pub const OVERLOAD: Row = Row {
    name: "overload",
    fault: "4 times more load than capacity for 60 s",
    promise: "p99 of accepted calls at most that at capacity + `queue_wait`; the rest get -32000; memory stays flat",
    parts: &[
        Part { name: "sleep-5ms", run: |extent| overload(extent, FLOOD) },
        Part { name: "any-framing", run: |extent| overload(extent, FLOOD.in_any_framing()) },
    ],
};

pub const FLOODS: Row = Row {
    name: "floods",
    fault: "5,000 clients of a byte a second, 1,000 that never read, 2,000 that come and go, 200 that send 1 MiB slowly",
    promise: "other clients' p99 at most 1.5 times; memory within `buffers`; all returns to where it was",
    parts: &[Part { name: "all", run: floods }],
};

const QUEUE_WAIT: Duration = Duration::from_millis(200);

const FIVE_MS: Work = Work::Fixed { method: "sleep", params: r#"{"ms":5}"#, result: Some("null") };

const FLOOD: Group = Group::new("calls", 256).work(FIVE_MS).pace(Duration::from_millis(80));

fn overload(extent: Extent, flood: Group) -> Result<Judge, BoxError> {
    // Four threads that sleep for 5 ms make 800 calls/s at most, and leave the processors to those who measure.
    let config = format!("threads = 2\n[limits]\nqueue_wait = \"{}ms\"", QUEUE_WAIT.as_millis());
    let mut service = Service::start(2, &config)?;
    let mut judge = Judge::default();
    // Four keep the threads busy; each way of speaking has at least one, as a batch takes longer than a call.
    let steady = Group::new("capacity", flood.speeches.len().max(4)).speaking(flood.speeches).work(FIVE_MS);
    let load = Load::start(service.address(), &[steady])?;
    std::thread::sleep(extent.seconds(10, 2));
    let end = load.elapsed();
    let at_capacity = load.finish(PATIENCE)?.remove(0);
    let usual = at_capacity.p99(&[(Duration::from_millis(500), end)]);

    let health = Group::new("health", 4).pace(Duration::from_millis(50));
    let load = Load::start(service.address(), &[flood, health])?;
    let memory = |service: &Service| service.processes().into_iter().map(proc::memory).sum::<u64>();
    std::thread::sleep(extent.seconds(60, 4) / 4);
    let early = memory(&service);
    std::thread::sleep(extent.seconds(60, 4) * 3 / 4);
    let (late, end) = (memory(&service), load.elapsed());
    let tallies = load.finish(PATIENCE)?;
    let calls = &tallies[0];
    judge.unharmed(&tallies);
    judge.only_errors(&tallies[..1], |failure| failure.code == -32000);
    judge.without_errors(&tallies[1..]);
    judge.tell(format!("capacity {} calls", at_capacity.right));
    judge.tell(format!("{} accepted, {} refused", calls.right, calls.errors_of(-32000)));
    judge.holds("it refuses what is too much", calls.errors_of(-32000) > calls.right);
    let whole = [(Duration::from_millis(500), end)];
    judge.tell(format!("p99 at capacity {usual:.1?}"));
    judge.within("p99 of accepted", calls.p99(&whole), usual + QUEUE_WAIT);
    // A batch is answered when the last of its calls has been refused.
    judge.within("p99 of refused", calls.error_latencies.percentile(99.0, &whole), usual + QUEUE_WAIT);
    judge.within("p99 of health", tallies[1].p99(&whole), Duration::from_millis(50));
    judge.holds("memory stays flat", late <= early + early / 5 + (8 << 20));
    judge.tell(format!("memory {} MiB, then {} MiB", early >> 20, late >> 20));
    judge.holds("it ends with 0", service.stop() == Some(0));
    // A call that was run though its caller had been told otherwise would be one more than the answers.
    let served = service.await_served("sleep");
    let right = at_capacity.right + calls.right;
    judge.tell(format!("{} run, {right} answered", served.unwrap_or(0)));
    judge.holds("no call that was refused is run", served == Some(right));
    judge.heard(&service);
    Ok(judge)
}

/// What the nuisances may hold in each worker.
const BUFFERS_MIB: u64 = 64;

fn floods(extent: Extent) -> Result<Judge, BoxError> {
    let processes: usize = 2;
    let config = format!("[limits]\nbuffers = \"{BUFFERS_MIB}MiB\"");
    let service = Service::start(processes, &config)?;
    // The same again, which nobody floods: what its clients see meanwhile is what the machine, and the flood's own clients on
    // its few cores, do to anybody.
    let spared = Service::start(processes, &config)?;
    let mut judge = Judge::default();
    let others = Group::new("others", 32).in_any_framing().pace(Duration::from_millis(10));
    let load = Load::start(service.address(), &[others])?;
    let beside = Load::start(spared.address(), &[others])?;
    judge.holds(
        "every client gets a first answer",
        load.await_begun(PATIENCE) && beside.await_begun(PATIENCE),
    );
    let memory = || service.processes().into_iter().map(proc::memory).sum::<u64>();
    let descriptors = || service.processes().into_iter().map(proc::descriptors).sum::<usize>();
    let from = load.elapsed();
    std::thread::sleep(extent.seconds(15, 3));
    let quiet = (from, load.elapsed());
    let (memory_before, descriptors_before) = (memory(), descriptors());
    let open = || service.processes().into_iter().map(proc::what_is_open).collect::<Vec<_>>().join("; ");
    let open_before = open();
    let scale = |count: usize| extent.count(count, count / 10);
    let flood = Load::start(
        service.address(),
        &[
            Group::new("a byte a second", scale(5_000))
                .in_any_framing()
                .coming_over(Duration::from_secs(1))
                .sending(Sending::Paced { bytes: 1, every: Duration::from_secs(1) })
                .life(Life::Nuisance),
            Group::new("never reads", scale(1_000))
                .in_any_framing()
                .work(Work::Blob { bytes: 100_000 })
                .pipelined(20)
                .reading(Reading::Never)
                .life(Life::Nuisance),
            Group::new("comes and goes", scale(2_000))
                .in_any_framing()
                .coming_over(Duration::from_secs(2))
                .pace(Duration::from_secs(2))
                .life(Life::Visit { calls: 1 }),
            Group::new("1 MiB slowly", scale(200))
                .speaking(Speech::SINGLE)
                .coming_over(Duration::from_millis(500))
                .work(Work::Echo { bytes: 1_000_000 })
                .sending(Sending::Paced { bytes: 32 << 10, every: Duration::from_millis(500) })
                .life(Life::Nuisance),
        ],
    )?;
    // What counts is how it is while they are there, not while they all come at once.
    std::thread::sleep(extent.seconds(5, 1));
    let from = load.elapsed();
    let mut most_memory = 0;
    for _ in 0..extent.count(40, 6) {
        std::thread::sleep(Duration::from_millis(500));
        most_memory = most_memory.max(memory());
    }
    let loud = (from, load.elapsed());
    drop(flood);
    // The last of them may linger for two seconds.
    let returned = proc::wait_until(Duration::from_secs(15), || {
        std::thread::sleep(Duration::from_millis(100));
        descriptors() <= descriptors_before && memory() <= memory_before + (16 << 20)
    });
    let (memory_after, descriptors_after) = (memory(), descriptors());
    if descriptors_after > descriptors_before {
        judge.tell(format!("open before: {open_before}; after: {}", open()));
    }
    let tallies = load.finish(PATIENCE)?;
    judge.unharmed(&tallies);
    // When all come at once there are more calls than the queue takes, and some of those that are refused are the others'.
    judge.only_errors(&tallies, |failure| failure.code == -32000);
    judge.at_most("refused of the others' calls", tallies[0].all_errors(), tallies[0].right / 1_000);
    let usual = tallies[0].p99(&[quiet]);
    // Both loads began together, but for some milliseconds.
    let elsewhere = beside.finish(PATIENCE)?[0].p99(&[loud]);
    judge.tell(format!("p99 without {usual:.2?}, of a service beside it that nobody floods {elsewhere:.2?}"));
    judge.within("p99 meanwhile", tallies[0].p99(&[loud]), usual.max(elsewhere) * 3 / 2);
    let grown = most_memory.saturating_sub(memory_before) >> 20;
    judge.at_most("MiB more at most", grown, BUFFERS_MIB * processes as u64 + 64);
    judge.tell(format!("memory {} MiB before, {} after", memory_before >> 20, memory_after >> 20));
    judge.tell(format!("descriptors {descriptors_before} before, {descriptors_after} after"));
    judge.holds("descriptors and memory return to where they were", returned);
    judge.heard(&service);
    Ok(judge)
}
