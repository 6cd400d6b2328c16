//! The result as one JSON object for machines. Its members are told in `tine bench --help`.

use std::time::Duration;

use serde_json::{Value, json};

use super::Measured;
use crate::sys::clock::whole_ns;

pub(super) fn object(measured: &Measured<'_>) -> String {
    let Measured { args, report, interrupted, server_cpu } = measured;
    let percentile = |percent| whole_ns(report.percentile(percent));
    let us = |time: Duration| time.as_secs_f64() * 1e6;
    let latency: Option<Value> = (report.calls > 0).then(|| {
        json!({
            "min": whole_ns(report.min()),
            "mean": whole_ns(report.mean()),
            "p50": percentile(50.0),
            "p75": percentile(75.0),
            "p90": percentile(90.0),
            "p99": percentile(99.0),
            "p99.9": percentile(99.9),
            "p99.99": percentile(99.99),
            "max": whole_ns(report.max()),
        })
    });
    let object = json!({
        "to": args.to,
        "method": args.method,
        "connections": args.connections,
        "pipeline": args.pipeline,
        "rate": args.rate,
        "warm_up_s": args.warm_up.as_secs_f64(),
        "measured_s": report.elapsed.as_secs_f64(),
        "interrupted": interrupted,
        "calls_per_second": report.rate(),
        "calls": report.calls,
        "errors": report.errors,
        "wrong": report.wrong,
        "unanswered": report.unanswered,
        "closed": report.closed,
        "latency_ns": latency,
        "load_cpu_share": report.load_share(),
        "server_cpu_s": server_cpu.map(|cpu| cpu.as_secs_f64()),
        "server_cpu_us_per_call": measured.server_cpu_per_call().map(us),
        "first_error": report.first_error,
        "first_wrong": report.first_wrong,
    });
    format!("{object}\n")
}
