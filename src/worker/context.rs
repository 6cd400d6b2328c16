//! What everything that reads requests or writes answers needs to know of this worker, for as long as it lives.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::config::Config;
use crate::rpc::web::pages::Pages;
use crate::rpc::{Service, web};

/// One for the worker.
#[derive(Debug)]
pub(super) struct WorkerContext {
    pub(super) service: Service,
    /// Who may call from a browser.
    pub(super) pages: Pages,
    /// Calls that a batch may have.
    pub(super) most_in_batch: usize,
    /// The service ends: what has begun is finished, and then all is closed. Set once.
    is_closing: AtomicBool,
    /// It will soon. Set once.
    is_red: AtomicBool,
}

impl WorkerContext {
    /// It stays for the life of the process, as threads that never come back may hold it.
    pub(super) fn open(service: Service, config: &Config) -> &'static Self {
        let http = &config.http;
        Box::leak(Box::new(Self {
            service,
            pages: Pages::new(&http.allow_origins, &http.allow_headers, &http.hosts),
            most_in_batch: config.limits.queue,
            is_closing: AtomicBool::new(false),
            is_red: AtomicBool::new(false),
        }))
    }

    /// Who asks is told that no further calls should come, which is no reason to refuse any.
    pub(super) fn turn_red(&self) {
        self.is_red.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_red(&self) -> bool {
        self.is_red.load(Ordering::SeqCst)
    }

    pub(super) fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::SeqCst)
    }

    /// True where it was said before.
    pub(super) fn close(&self) -> bool {
        self.is_closing.swap(true, Ordering::SeqCst)
    }
}

thread_local! {
    /// The second that it is of, and the text.
    static DATE: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
}

/// Has `write` use the date as HTTP has it, which each thread makes once a second.
pub(super) fn with_date<T>(write: impl FnOnce(&str) -> T) -> T {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    DATE.with_borrow_mut(|(of, date)| {
        if *of != now {
            (*of, *date) = (now, web::date::imf_fixdate(now));
        }
        write(date)
    })
}
