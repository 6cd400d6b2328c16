//! The import rule: who in `src` may use whom.
//!
//!     cli → server → {supervisor, template, admin} → worker → {rpc, arena, addresses, channel, config} → wire → sys
//!
//! A module uses what stands further down, at any distance. Modules of one level don't use each other, and the
//! modules beside this line have a list each. Tests inside a file are held to its rule. The crate's root may use
//! everything, and is used by nobody: what it re-exports is imported from the module that owns it.

use crate::source::{Source, words};

/// From the bottom up.
const LEVELS: [&[&str]; 7] = [
    &["sys"],
    &["wire"],
    &["rpc", "arena", "addresses", "channel", "config"],
    &["worker"],
    &["supervisor", "template", "admin"],
    &["server"],
    &["cli"],
];

/// Modules beside the levels: what each may use, and who may use it.
const BESIDE: [(&str, &[&str], &[&str]); 5] = [
    ("fail_points", &["sys"], &["arena", "worker", "internals"]),
    ("client", &["rpc", "config", "wire", "sys"], &["cli", "internals"]),
    ("fork_processes", &["config", "sys"], &["cli"]),
    // For this project's benches and fuzz targets, which stand outside of the crate.
    (
        "internals",
        &["rpc", "arena", "wire", "sys", "fail_points", "worker", "client", "config", "supervisor"],
        &[],
    ),
    (
        "log",
        &["arena", "config", "sys"],
        &["rpc", "arena", "channel", "config", "worker", "supervisor", "template", "admin", "server", "cli"],
    ),
];

/// Modules of one level of which the first may use the second, with the reason.
pub(crate) const PEERS: &[(&str, &str, &str)] = &[
    ("channel", "arena", "messages name a connection by the place of its record"),
    ("rpc", "config", "errors tell times in the form of the configuration's"),
];

/// Parts of the worker that know nothing of each other: whoever has two of them decides where a connection goes next.
const WIRED_APART: [&[&str]; 3] = [&["connection"], &["threads", "poller"], &["threads", "pool"]];

/// Where a source breaks the rule.
pub(crate) fn broken(source: &Source) -> Vec<String> {
    let module = module_of(&source.path);
    if let Some(name) = module.first()
        && !is_known(name)
    {
        return vec![
            source.at(0, &format!("`{name}` has no place in the import rule: give it one in {}", file!())),
        ];
    }
    let mut broken = Vec::new();
    for (index, path) in imports(source) {
        if let Some(why) = objection(&module, &path) {
            broken.push(
                source.at(index, &format!("{} may not use {}: {why}", module.join("::"), path.join("::"))),
            );
        }
    }
    broken
}

/// Which modules of the crate's root a source uses, as (user, owner), itself excluded.
pub(crate) fn between_modules(source: &Source) -> Vec<(String, String)> {
    let module = module_of(&source.path);
    let Some(user) = module.first() else { return Vec::new() };
    let owners = imports(source).into_iter().filter_map(|(_, path)| path.into_iter().next());
    owners.filter(|owner| owner != user && is_known(owner)).map(|owner| (user.clone(), owner)).collect()
}

fn objection(from: &[String], to: &[String]) -> Option<&'static str> {
    let (Some(user), Some(owner)) = (from.first().map(String::as_str), to.first().map(String::as_str)) else {
        return None;
    };
    if !is_known(owner) {
        return Some("it is no module of the crate's root, import it from the one that owns it");
    }
    if user == owner {
        let part = |path: &[String]| {
            let inside = path.get(1..).unwrap_or_default();
            WIRED_APART.into_iter().find(|part| {
                inside.len() >= part.len() && part.iter().zip(inside).all(|(part, name)| part == name)
            })
        };
        return match (part(from), part(to)) {
            (Some(mine), Some(other)) if user == "worker" && mine != other => {
                Some("these parts of the worker know nothing of each other")
            }
            _ => None,
        };
    }
    if let Some((_, uses, _)) = beside(user) {
        return (!uses.contains(&owner)).then_some("it stands beside the levels and has its own short list");
    }
    if let Some((_, _, users)) = beside(owner) {
        return (!users.contains(&user))
            .then_some("that stands beside the levels and has its own list of users");
    }
    if PEERS.iter().any(|(from, to, _)| (*from, *to) == (user, owner)) {
        return None;
    }
    match level(owner).cmp(&level(user)) {
        std::cmp::Ordering::Less => None,
        std::cmp::Ordering::Equal => Some("they stand on one level"),
        std::cmp::Ordering::Greater => Some("imports point downwards only"),
    }
}

fn level(module: &str) -> Option<usize> {
    LEVELS.iter().position(|level| level.contains(&module))
}

fn beside(module: &str) -> Option<(&'static str, &'static [&'static str], &'static [&'static str])> {
    BESIDE.into_iter().find(|(name, _, _)| *name == module)
}

fn is_known(module: &str) -> bool {
    level(module).is_some() || beside(module).is_some()
}

/// `src/worker/poller.rs` is `worker::poller`; the crate's root is empty.
pub(crate) fn module_of(path: &str) -> Vec<String> {
    let path = path.trim_start_matches("src/").trim_end_matches(".rs");
    let mut module: Vec<String> = path.split('/').map(str::to_owned).collect();
    let last = module.last().map(String::as_str);
    if last == Some("mod") || (module.len() == 1 && matches!(last, Some("lib" | "main"))) {
        module.pop();
    }
    module
}

/// Every path that leads through the crate's root or through a module above, as a path from the root, with the index
/// of its line. Paths in `use` and paths in the middle of code count alike.
fn imports(source: &Source) -> Vec<(usize, Vec<String>)> {
    let code = &source.code;
    let module = module_of(&source.path);
    let mut found = Vec::new();
    for (at, word) in words(code) {
        if !matches!(word, "crate" | "super") || code[..at].trim_end().ends_with("::") {
            continue;
        }
        let index = code[..at].matches('\n').count();
        for path in paths(&mut &code[at..]) {
            found.extend(from_the_root(&module, &path).into_iter().map(|path| (index, path)));
        }
    }
    found
}

/// What a path may lead to. `super` in a `mod` inside the file leads less far than in the file itself, and words alone
/// don't tell where they stand, so it is taken in every way that is possible; the wrong ones name no module.
fn from_the_root(module: &[String], path: &[String]) -> Vec<Vec<String>> {
    if path.first().is_some_and(|first| first == "crate") {
        let path = path[1..].to_vec();
        return if path.is_empty() { Vec::new() } else { vec![path] };
    }
    let supers = path.iter().take_while(|part| *part == "super").count();
    let mut found = Vec::new();
    for up in 0..=supers.min(module.len()) {
        let path = [&module[..module.len() - up], &path[supers..]].concat();
        if path.first().is_some_and(|first| is_known(first)) {
            found.push(path);
        }
    }
    found
}

/// The paths of the tree that the code begins with: `a::{b, c::d as e}` is `a::b` and `a::c::d`.
pub(crate) fn paths(code: &mut &str) -> Vec<Vec<String>> {
    *code = code.trim_start();
    if let Some(rest) = code.strip_prefix('{') {
        *code = rest;
        return group(code);
    }
    if let Some(rest) = code.strip_prefix('*') {
        *code = rest;
        return vec![vec!["*".to_owned()]];
    }
    let word = words(code).next().filter(|(at, _)| *at == 0).map(|(_, word)| word.to_owned());
    let Some(word) = word else {
        // The end of a path in code, as before `<`: it leads to what came before.
        return vec![Vec::new()];
    };
    *code = code[word.len()..].trim_start();
    let below = match code.strip_prefix("::") {
        Some(rest) => {
            *code = rest;
            paths(code)
        }
        None => vec![Vec::new()],
    };
    below.into_iter().map(|path| [vec![word.clone()], path].concat()).collect()
}

fn group(code: &mut &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    loop {
        found.extend(paths(code));
        // Past a new name.
        let end = code.find([',', '}']).unwrap_or(code.len());
        let rest = &code[end..];
        *code = rest.get(1..).unwrap_or_default();
        if !rest.starts_with(',') {
            return found;
        }
        if let Some(rest) = code.trim_start().strip_prefix('}') {
            *code = rest;
            return found;
        }
    }
}

#[cfg(test)]
fn findings(path: &str, text: &str) -> usize {
    broken(&Source::new(path, text)).len()
}

#[test]
fn imports_that_point_upwards_or_sideways_are_found() {
    for (path, text) in [
        ("src/wire/length.rs", "use crate::rpc::Call;"),
        ("src/sys/epoll.rs", "fn f() { crate::worker::threads::poller::wake(); }"),
        ("src/rpc/mod.rs", "use crate::arena::Counter;"),
        ("src/channel/mod.rs", "use crate::{wire::Length, config};"),
        ("src/channel/mod.rs", "use crate::{\n    wire::Length,\n    config::{self as c},\n};"),
        ("src/supervisor/mod.rs", "mod tests { use crate::admin; }"),
        ("src/worker/mod.rs", "pub(crate) use crate::supervisor as boss;"),
        ("src/arena/mod.rs", "use super::worker;"),
        ("src/arena/rings.rs", "mod tests { use super::super::super::worker; }"),
        ("src/arena/rings.rs", "use super::super::{worker, sys};"),
        ("src/server/local.rs", "impl crate::cli::Run for X {}"),
        ("src/client/mod.rs", "use crate::worker::Pool;"),
        ("src/fork_processes.rs", "use crate::supervisor::policy;"),
        ("src/log.rs", "use crate::worker::Pool;"),
        ("src/wire/mod.rs", "use crate::log;"),
        ("src/worker/mod.rs", "use crate::client::Client;"),
        ("src/worker/pool.rs", "use crate::Call;"),
        ("src/worker/pool.rs", "use crate::*;"),
        ("src/misc.rs", ""),
    ] {
        assert_eq!(findings(path, text), 1, "{path}: {text}");
    }
}

#[test]
fn the_parts_of_the_worker_that_import_each_other_are_found() {
    for (path, text) in [
        ("src/worker/threads/poller.rs", "use crate::worker::connection::Connection;"),
        ("src/worker/threads/poller.rs", "use super::{watch, pool};"),
        ("src/worker/connection/output.rs", "use crate::worker::{call, threads::poller::Wake};"),
        ("src/worker/connection/output.rs", "mod tests { use super::super::super::threads::pool; }"),
        ("src/worker/threads/pool.rs", "mod tests { use super::super::super::connection; }"),
    ] {
        assert_eq!(findings(path, text), 1, "{path}: {text}");
    }
    for (path, text) in [
        ("src/worker/shared.rs", "use crate::worker::{connection, threads::{poller, pool}};"),
        ("src/worker/threads/poller.rs", "use super::deadlines; mod tests { use super::*; }"),
        ("src/worker/connection/output.rs", "use super::input; use crate::worker::connection;"),
        ("src/worker/threads/duty.rs", "use super::pool;"),
    ] {
        assert_eq!(findings(path, text), 0, "{path}: {text}");
    }
}

#[test]
fn imports_that_keep_to_the_rule_pass() {
    for (path, text) in [
        ("src/cli/call.rs", "use super::args; use crate::client::Client; use crate::server; use crate::sys;"),
        ("src/worker/mod.rs", "use crate::{arena, config, channel, log, rpc, sys, wire};"),
        (
            "src/arena/mod.rs",
            "use crate::log; use crate::sys::memory::{self, WORD}; mod tests { use super::*; }",
        ),
        ("src/log.rs", "use crate::{arena, config, sys};"),
        ("src/client/mod.rs", "pub(in crate::client) use crate::rpc::Error; pub(crate) use std::io;"),
        ("src/lib.rs", "pub use crate::server::Server; use crate::worker;"),
        ("src/wire/mod.rs", "// use crate::worker;\nlet text = \"crate::worker\"; use std::{io, fmt};"),
        ("src/wire/mod.rs", "use hyper::super_crate; use std::super_::worker;"),
    ] {
        let broken = broken(&Source::new(path, text));
        assert!(broken.is_empty(), "{path}: {broken:?}");
    }
}

#[test]
fn a_tree_of_imports_is_every_path_in_it() {
    let text = "crate::{a, b::{self, c as d, e::*}, f::<G>(), }; rest";
    let found: Vec<String> = paths(&mut &text[..]).iter().map(|path| path.join("::")).collect();
    assert_eq!(found, ["crate::a", "crate::b::self", "crate::b::c", "crate::b::e::*", "crate::f"]);
}

#[test]
fn a_finding_names_the_line() {
    let source = Source::new("src/wire/length.rs", "use std::io;\n\nuse crate::{sys,\n    rpc};\n");
    let found = broken(&source);
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("src/wire/length.rs:3: wire::length may not use rpc: "), "{found:?}");
}
