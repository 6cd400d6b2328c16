//! The methods of a server: registered once, looked up for every call, never changed in between.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;

use rustc_hash::FxHashMap;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::about::About;
use super::builtin;
use super::context::Call;
use super::discover::{self, Description};
use super::error::{Error, shortened};
use super::guard::guarded;
use super::json::RawJson;
use super::reply::{Reply, write_value};
use super::{envelope, params};

/// The longest name of a method or reply, in bytes.
const MAX_NAME: usize = 128;

type Run = dyn Fn(&Call<'_>, Option<RawJson<'_>>, &mut Vec<u8>) -> Result<(), Error> + Send + Sync;

/// A handler, with what it takes and gives hidden: it appends its result to the output.
pub(crate) struct Handler(Box<Run>);

impl Handler {
    /// Params decoded into `P`, the result written from `R`.
    pub(crate) fn typed<P, R, F>(handler: F) -> Handler
    where
        P: DeserializeOwned,
        R: Serialize,
        F: Fn(&Call<'_>, P) -> Result<R, Error> + Send + Sync + 'static,
    {
        Handler(Box::new(move |call, given, out| {
            let result = handler(call, params::decode_optional(given)?)?;
            let written = guarded(|| write_value(&result, out));
            // By itself: where writing it and dropping it panic, the second must not do so while the first unwinds.
            drop(result);
            written.unwrap_or_else(|panicked| panicked.go_on())
        }))
    }

    /// Params and result as JSON text; a call without params has `null`.
    pub(crate) fn raw<F>(handler: F) -> Handler
    where
        F: Fn(&Call<'_>, RawJson<'_>, &mut Reply<'_>) -> Result<(), Error> + Send + Sync + 'static,
    {
        Handler(Box::new(move |call, params, out| {
            let mut reply = Reply::new(out);
            handler(call, params.unwrap_or(RawJson::NULL), &mut reply)?;
            reply.finish();
            Ok(())
        }))
    }
}

/// One registered method.
pub(crate) struct Method {
    name: Box<str>,
    /// An answer of the native envelope up to its result.
    native_head: Box<[u8]>,
    handler: Handler,
}

impl Method {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn native_head(&self) -> &[u8] {
        &self.native_head
    }

    /// Runs the handler and appends its result to `out`; after an error `out` is as it was.
    ///
    /// Unwinds if the handler panics, with part of a result in `out`.
    pub(crate) fn invoke(
        &self,
        call: &Call<'_>,
        params: Option<RawJson<'_>>,
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let start = out.len();
        (self.handler.0)(call, params, out).inspect_err(|_| out.truncate(start))
    }
}

/// A method's number: its place among all names in alphabetical order, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct MethodIndex(pub(crate) usize);

/// All methods, the built-in ones included.
pub(crate) struct Registry {
    methods: Vec<Method>,
    /// Its hash is quick and has no secret: names are the program's own, and callers only look them up.
    by_name: FxHashMap<Box<str>, MethodIndex>,
    about: About,
}

impl Registry {
    /// The service's name and version.
    pub(super) fn about(&self) -> &About {
        &self.about
    }

    /// The number of a method, which stays the same as long as this registry lives.
    pub(crate) fn find(&self, name: &str) -> Option<MethodIndex> {
        self.by_name.get(name).copied()
    }

    /// The method of that number, which must come from this registry.
    pub(crate) fn get(&self, index: MethodIndex) -> Option<&Method> {
        self.methods.get(index.0)
    }

    /// The method a call asks for, or the answer that there is none.
    pub(crate) fn resolve(&self, name: &str) -> Result<(MethodIndex, &Method), Error> {
        self.find(name)
            .and_then(|index| Some((index, self.get(index)?)))
            .ok_or_else(|| Error::method_not_found(name))
    }

    /// All names, in the order of their numbers.
    pub(crate) fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.methods.iter().map(Method::name)
    }

    /// For each method, in the order of their numbers, whether it is a built-in one.
    pub(crate) fn are_built_in(&self) -> impl ExactSizeIterator<Item = bool> {
        self.names().map(builtin::is_builtin)
    }
}

/// Collects methods; what is wrong with them is said once, about all of them.
#[derive(Default)]
pub(crate) struct RegistryBuilder {
    methods: HashMap<String, (String, Handler)>,
    descriptions: HashMap<String, Description>,
    about: About,
    mistakes: Vec<String>,
}

/// What is wrong with the methods, states and hooks of a server: a sentence for each mistake, a line for each sentence.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mistakes(pub(crate) Vec<String>);

impl RegistryBuilder {
    /// Adds a method; answers of the native envelope say `reply`.
    pub(crate) fn add(&mut self, name: String, reply: String, handler: Handler) {
        self.mistakes.extend(check_name(&name));
        if reply != name {
            self.mistakes.extend(check_reply(&name, &reply));
        }
        if reply == envelope::ERROR_NAME {
            self.mistakes.push(format!(
                "method `{name}`: an answer named `error` can't be told from an error; give it another one with \
                 `method_replying`"
            ));
        }
        self.insert(name, reply, handler);
    }

    /// Has `rpc.discover` say this of a method.
    pub(crate) fn describe(&mut self, name: String, description: Description) {
        match self.descriptions.entry(name) {
            Entry::Occupied(taken) => {
                self.mistakes.push(format!("method `{}` is described twice", shortened(taken.key())));
            }
            Entry::Vacant(room) => {
                room.insert(description);
            }
        }
    }

    /// What the program says of itself.
    pub(crate) fn set_about(&mut self, title: String, version: String) {
        self.about = About { title, version: Some(version) };
    }

    pub(crate) fn about(&self) -> &About {
        &self.about
    }

    /// Notes a mistake made elsewhere in the server.
    pub(crate) fn mistake(&mut self, mistake: String) {
        self.mistakes.push(mistake);
    }

    /// Closes the list, adding the built-in methods.
    pub(crate) fn build(mut self) -> Result<Registry, Mistakes> {
        for (name, reply, handler) in builtin::handlers() {
            self.insert(name.to_owned(), reply.to_owned(), handler);
        }
        let names = self.methods.keys().map(String::as_str).chain([builtin::METHODS, builtin::DISCOVER]);
        let list = builtin::list_of(names);
        self.insert(builtin::METHODS.to_owned(), builtin::METHODS.to_owned(), list);
        self.add_discover();
        if !self.mistakes.is_empty() {
            return Err(Mistakes(self.mistakes));
        }

        let mut methods: Vec<Method> = self
            .methods
            .into_iter()
            .map(|(name, (reply, handler))| Method {
                name: name.into(),
                native_head: envelope::native_head(&reply).into(),
                handler,
            })
            .collect();
        methods.sort_by(|a, b| a.name.cmp(&b.name));
        let by_name = (methods.iter().enumerate())
            .map(|(index, method)| (method.name.clone(), MethodIndex(index)))
            .collect();
        Ok(Registry { methods, by_name, about: self.about })
    }

    /// Behind all others, which it describes.
    fn add_discover(&mut self) {
        for name in self.descriptions.keys() {
            if builtin::is_builtin(name) || !self.methods.contains_key(name) {
                self.mistakes.push(format!(
                    "method `{}` is described, and is none of the program's methods",
                    shortened(name)
                ));
            }
        }
        self.descriptions.extend(builtin::descriptions().map(|(name, text)| (name.to_owned(), text)));
        let mut names: Vec<&str> =
            self.methods.keys().map(String::as_str).chain([builtin::DISCOVER]).collect();
        names.sort_unstable();
        let methods = names.into_iter().map(|name| (name, self.descriptions.get(name)));
        let document = discover::document(&self.about, methods);
        match serde_json::value::to_raw_value(&document) {
            Ok(document) => {
                let discover = builtin::discover(document);
                self.insert(builtin::DISCOVER.to_owned(), builtin::DISCOVER.to_owned(), discover);
            }
            // A value is JSON already.
            Err(error) => self.mistakes.push(format!("the methods can't be described: {error}")),
        }
    }

    fn insert(&mut self, name: String, reply: String, handler: Handler) {
        match self.methods.entry(name) {
            Entry::Occupied(taken) => {
                let name = taken.key();
                let mistake = if builtin::is_builtin(name) {
                    format!("method `{name}` is built in; choose another name")
                } else {
                    format!("method `{name}` is registered twice")
                };
                self.mistakes.push(mistake);
            }
            Entry::Vacant(room) => {
                room.insert((reply, handler));
            }
        }
    }
}

fn check_name(name: &str) -> Option<String> {
    let reserved = ["tine.", "rpc."].into_iter().find(|prefix| name.starts_with(prefix));
    if let Some(prefix) = reserved {
        return Some(format!("method `{}`: names that start with `{prefix}` are reserved", shortened(name)));
    }
    check_text(name)
        .map(|what| format!("method `{}`: its name {what}", shortened(&name.escape_debug().to_string())))
}

fn check_reply(name: &str, reply: &str) -> Option<String> {
    check_text(reply).map(|what| format!("method `{}`: the name of its answer {what}", shortened(name)))
}

fn check_text(name: &str) -> Option<String> {
    if name.is_empty() {
        Some("is empty".to_owned())
    } else if name.len() > MAX_NAME {
        Some(format!("has {} bytes; {MAX_NAME} is the most", name.len()))
    } else if name.contains(char::is_control) {
        Some("has a control character in it".to_owned())
    } else {
        None
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Mistakes {}

#[cfg(test)]
mod tests {
    use super::super::context::States;
    use super::super::context::tests::with_call;
    use super::*;

    fn nothing() -> Handler {
        Handler::typed(|_, (): ()| Ok(()))
    }

    fn build(names: &[(&str, &str)]) -> Result<Registry, Mistakes> {
        let mut builder = RegistryBuilder::default();
        for (name, reply) in names {
            builder.add((*name).to_owned(), (*reply).to_owned(), nothing());
        }
        builder.build()
    }

    fn invoke(handler: Handler, params: Option<&str>) -> Result<String, Error> {
        let mut builder = RegistryBuilder::default();
        builder.add("frob".to_owned(), "frob".to_owned(), handler);
        let registry = builder.build().unwrap();
        let (_, method) = registry.resolve("frob")?;
        let params = params.map(RawJson::parse).transpose()?;
        let mut out = b"kept:".to_vec();
        let done = with_call("frob", None, &States::default(), |call| method.invoke(call, params, &mut out));
        let text = String::from_utf8(out).unwrap();
        assert!(done.is_ok() || text == "kept:", "an error leaves the output as it was: {text}");
        done.map(|()| text.trim_start_matches("kept:").to_owned())
    }

    #[test]
    fn methods_are_numbered_by_name_and_found_by_name() {
        let registry = build(&[("zip", "zip"), ("add", "sum")]).unwrap();
        let names: Vec<&str> = registry.names().collect();
        assert_eq!(names, ["add", "echo", "ping", "rpc.discover", "tine.methods", "tine.worker", "zip"]);
        for (index, name) in names.iter().enumerate() {
            assert_eq!(registry.find(name), Some(MethodIndex(index)));
            assert_eq!(registry.get(MethodIndex(index)).map(Method::name), Some(*name));
        }
        assert_eq!(registry.get(MethodIndex(7)).map(Method::name), None);
    }

    #[test]
    fn a_method_nobody_registered_is_named_in_the_error() {
        let registry = build(&[]).unwrap();
        let error = registry.resolve("frobnicate").err().unwrap();
        assert_eq!(error.code(), Error::METHOD_NOT_FOUND);
        assert!(error.message().contains("`frobnicate`"));
    }

    #[test]
    fn every_mistake_is_reported_at_once() {
        let long = "x".repeat(129);
        let mistakes = build(&[
            ("twice", "twice"),
            ("twice", "twice"),
            ("", "a"),
            (&long, "a"),
            ("tine.mine", "a"),
            ("rpc.mine", "a"),
            ("ping", "ping"),
            ("a\nb", "a"),
            ("error", "error"),
            ("silent", ""),
        ])
        .unwrap_err();
        let text = mistakes.to_string();
        for (line, part) in text.lines().zip([
            "`twice` is registered twice",
            "its name is empty",
            "has 129 bytes; 128 is the most",
            "start with `tine.` are reserved",
            "start with `rpc.` are reserved",
            "`a\\nb`: its name has a control character",
            "can't be told from an error",
            "the name of its answer is empty",
            "`ping` is built in",
        ]) {
            assert!(line.contains(part), "{line} should contain {part}");
        }
        assert_eq!(mistakes.0.len(), 9);
        assert!(build(&[(&"x".repeat(128), "a"), ("tiny", "a"), ("error", "trouble")]).is_ok());
    }

    #[test]
    fn descriptions_are_of_methods_there_are_and_one_for_each() {
        let mut builder = RegistryBuilder::default();
        builder.add("frob".to_owned(), "frob".to_owned(), nothing());
        for name in ["frob", "frob", "frobnicate", "ping"] {
            builder.describe(name.to_owned(), Description::new("does"));
        }
        let mut mistakes = builder.build().unwrap_err().0;
        mistakes.sort();
        assert_eq!(
            mistakes,
            [
                "method `frob` is described twice",
                "method `frobnicate` is described, and is none of the program's methods",
                "method `ping` is described, and is none of the program's methods",
            ]
        );
    }

    #[test]
    fn all_methods_are_in_the_document_in_order_the_built_in_ones_described() {
        let registry = build(&[("zip", "zip"), ("add", "sum")]).unwrap();
        let (_, discover) = registry.resolve("rpc.discover").unwrap();
        let mut out = Vec::new();
        with_call("rpc.discover", None, &States::default(), |call| discover.invoke(call, None, &mut out))
            .unwrap();
        let document: serde_json::Value = serde_json::from_slice(&out).unwrap();
        let methods = document["methods"].as_array().unwrap();
        let names: Vec<&str> = methods.iter().map(|method| method["name"].as_str().unwrap()).collect();
        assert_eq!(names, registry.names().collect::<Vec<_>>());
        for method in methods {
            let name = method["name"].as_str().unwrap();
            assert_eq!(method["summary"].is_string(), builtin::is_builtin(name), "{name}");
        }
        let worker = methods.iter().find(|method| method["name"] == "tine.worker").unwrap();
        assert_eq!(worker["result"]["schema"]["properties"]["pid"]["type"], "integer");
    }

    #[test]
    fn a_typed_handler_takes_and_gives_its_own_types() {
        let add = || Handler::typed(|_, (a, b): (i32, i32)| Ok(a + b));
        assert_eq!(invoke(add(), Some("[2, 40]")).unwrap(), "42");
        assert_eq!(invoke(add(), Some("[2]")).unwrap_err().code(), Error::INVALID_PARAMS);
        assert_eq!(invoke(add(), None).unwrap_err().code(), Error::INVALID_PARAMS);
        assert_eq!(invoke(nothing(), None).unwrap(), "null");
    }

    #[test]
    fn a_result_that_can_not_be_written_is_an_internal_error_and_leaves_no_bytes() {
        let handler = Handler::typed(|_, (): ()| Ok((1, std::collections::HashMap::from([((1, 2), 3)]))));
        let error = invoke(handler, None).unwrap_err();
        assert_eq!((error.code(), error.message()), (Error::INTERNAL, "internal error"));
    }

    #[test]
    fn a_raw_handler_that_fails_after_writing_leaves_no_bytes() {
        let handler = Handler::raw(|_, params, reply| {
            reply.raw(params);
            Err(Error::new(5, "changed my mind"))
        });
        assert_eq!(invoke(handler, Some("[1]")).unwrap_err().code(), 5);
    }

    #[test]
    fn a_handler_knows_its_call() {
        let handler = Handler::typed(|call, (): ()| Ok((call.method().to_owned(), call.slot())));
        assert_eq!(invoke(handler, None).unwrap(), r#"["frob",2]"#);
    }
}
