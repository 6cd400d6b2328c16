//! The pool: the threads that run handlers which are not quick. What a job is and how it is run is not known here.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crossbeam_channel::bounded;

/// Starts `threads` threads, numbered from 1, and returns when all of them are ready.
///
/// On each, `begin` makes what runs its jobs; then the thread runs what `next` waits for, for ever.
///
/// # Errors
///
/// A thread can't be started, or `begin` failed on one. The others stay, waiting for jobs.
pub(in crate::worker) fn start<J, R>(
    threads: usize,
    next: impl Fn() -> J + Clone + Send + 'static,
    mut begin: impl FnMut(usize) -> Result<R, String>,
) -> Result<(), String>
where
    J: Send + 'static,
    R: FnOnce() -> Result<Box<dyn FnMut(J)>, String> + Send + 'static,
{
    let (report, reports) = bounded(threads);
    for thread in 1..=threads {
        let (begin, next, report) = (begin(thread)?, next.clone(), report.clone());
        std::thread::Builder::new()
            .name(format!("pool {thread}"))
            .spawn(move || {
                let (run, ready) = match begin() {
                    Ok(run) => (Some(run), Ok(())),
                    Err(reason) => (None, Err(reason)),
                };
                // Whoever starts the pool waits for every report, so there is somebody to send it to.
                let _ = report.send(ready);
                drop(report);
                // Handlers' panics are caught where they run. One that gets here is our own mistake, and a
                // pool that is one thread short for ever would be worse than a worker that is replaced.
                if catch_unwind(AssertUnwindSafe(|| run.map(|run| serve(next, run)))).is_err() {
                    std::process::abort();
                }
            })
            .map_err(|error| format!("thread {thread} of {threads} can't be started: {error}"))?;
    }
    drop(report);
    for _ in 0..threads {
        reports.recv().map_err(|_| "a thread ended before it was ready; a hook panicked".to_string())??;
    }
    Ok(())
}

/// Runs what `next` waits for, for ever.
pub(in crate::worker) fn serve<J>(next: impl Fn() -> J, mut run: impl FnMut(J)) -> ! {
    loop {
        run(next());
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::unbounded;

    use super::*;

    #[test]
    fn every_job_is_run_by_some_thread() {
        let ((jobs, queue), (done, results)) = (unbounded(), unbounded());
        let next = move || queue.recv().unwrap_or_default();
        start(3, next, |thread| {
            let done = done.clone();
            Ok(move || Ok(Box::new(move |job: u32| done.send((thread, job)).unwrap()) as Box<dyn FnMut(u32)>))
        })
        .unwrap();
        (0..50).for_each(|job| jobs.send(job).unwrap());
        let mut ran: Vec<u32> = (0..50).map(|_| results.recv().unwrap().1).collect();
        ran.sort_unstable();
        assert_eq!(ran, (0..50).collect::<Vec<_>>());
        // The threads go on waiting for more.
        std::mem::forget(jobs);
    }

    #[test]
    fn a_thread_that_can_not_begin_fails_the_start() {
        let (jobs, queue) = unbounded::<()>();
        std::mem::forget(jobs);
        let started = start(
            2,
            move || queue.recv().unwrap_or_default(),
            |thread| {
                Ok(move || match thread {
                    2 => Err("no licence for a second thread".to_string()),
                    _ => Ok(Box::new(drop) as Box<dyn FnMut(())>),
                })
            },
        );
        assert_eq!(started, Err("no licence for a second thread".to_string()));
    }
}
