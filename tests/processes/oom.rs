//! Where memory runs out the kernel is to choose a worker, which is replaced, and not the supervisor, with which the service ends.
//! It chose the supervisor when it had killed the worker that used most and others, who had just been forked, used less.

use std::fs;

use crate::support::proc::after_setup;
use crate::support::{Service, rig};
use nix::sys::signal::Signal;

/// What the kernel adds to the memory that the process uses, in thousandths of all.
fn adjustment(pid: i32) -> i32 {
    let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("it lives");
    text.trim().parse().expect("a number")
}

#[test]
fn the_kernel_is_to_kill_workers_before_supervisor_and_template() {
    for (own, workers) in [(20, 120), (950, 1_000)] {
        let setup = format!("echo {own} > /proc/self/oom_score_adj");
        let service = Service::start_with(after_setup(&setup, &rig()), "processes = 2\nthreads = 1");
        for generation in 1..=2 {
            assert_eq!((adjustment(service.pid()), adjustment(service.template())), (own, own));
            let found: Vec<i32> = service.worker_pids().into_iter().map(adjustment).collect();
            assert_eq!(found, [workers; 2], "generation {generation}");
            if generation == 1 {
                service.signal(Signal::SIGHUP);
                service.await_log("reloaded");
                for _ in 0..2 {
                    service.await_log("worker ended");
                }
            }
        }
    }
}
