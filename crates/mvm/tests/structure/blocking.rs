//! Calls that block a thread of the executor.
//!
//! A function blocks if it calls one of [`BLOCKING`], or a function of its crate that blocks. Async
//! code calls such a function only in the closure that it hands to `blocking` or `spawn_blocking`.
//! Functions are told apart by name, and by the type or module that the call names. Where several have
//! one name and the call names none of them, they count as blocking only if all of them block.

use crate::imports::{Crate, is_test};
use std::collections::{BTreeMap, BTreeSet};
use syn::visit::{self, Visit};
use syn::{
    Expr, ExprAsync, ExprAwait, ExprCall, ExprMethodCall, ImplItemFn, ItemFn, ItemImpl, Type,
};

/// Calls that wait for a disk, or do work that grows with a directory or file: the last two segments
/// of a path, or a method. Calls that change or read one name or small file come from the page cache
/// in microseconds, and are not among them.
const BLOCKING: [&str; 7] = [
    "files::write_atomically",
    "fs::copy",
    "fs::read_dir",
    "fs::remove_dir_all",
    "thread::sleep",
    ".sync_all",
    ".sync_data",
];

/// Methods that types of std and of libraries have, too.
const OF_STD: [&str; 16] = [
    "close", "find", "finish", "get", "keep", "lock", "open", "read", "release", "remove",
    "retain", "serve", "spawn", "text", "trim", "write",
];

/// Functions whose closures run on threads that may block.
const APART: [&str; 4] = ["blocking", "spawn_blocking", "spawn", "off_thread"];

/// What one function does.
#[derive(Default)]
struct Function {
    is_async: bool,
    module: String,
    /// Calls on the thread that runs the function, in its sync part.
    calls: BTreeSet<String>,
    /// Calls in async code: an async function's, or those of its async blocks.
    awaited: BTreeSet<String>,
}

/// Returns the calls of async code that block: `crate: function calls name`.
pub fn blocked(one: &Crate) -> Vec<String> {
    let mut reader = Reader::default();
    for (path, module) in &one.modules {
        if !path.contains("tests") && !path.starts_with("crashes") {
            reader.module = path.rsplit("::").next().unwrap_or_default().to_owned();
            module.items.iter().for_each(|item| reader.visit_item(item));
        }
    }
    let functions = reader.functions;
    // All functions that a call may mean: by `owner::name`, and by name alone.
    let mut named: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for name in functions.keys() {
        let last = name.rsplit_once("::").map_or(name.as_str(), |(_, last)| last);
        named.entry(last).or_default().push(name);
    }
    let mut blocking: BTreeSet<&str> = BTreeSet::new();
    let blocks = |caller: &str, call: &str, blocking: &BTreeSet<&str>| {
        if BLOCKING.contains(&call) {
            return true;
        }
        if let Some(method) = call.strip_prefix('.') {
            // A method of an unknown type, or of a type of std.
            let known = named.get(method).filter(|_| !OF_STD.contains(&method));
            return known.is_some_and(|known| known.iter().all(|name| blocking.contains(name)));
        }
        if call.contains("::") {
            return blocking.contains(call);
        }
        // A function of the same module, else an imported one.
        let module = functions[caller].module.as_str();
        let here = format!("{module}::{call}");
        match functions.contains_key(&here) {
            true => blocking.contains(here.as_str()),
            false => named
                .get(call)
                .is_some_and(|known| known.iter().all(|name| blocking.contains(name))),
        }
    };
    loop {
        let new: Vec<&str> = functions
            .iter()
            .filter(|(name, function)| {
                !function.is_async
                    && !blocking.contains(name.as_str())
                    && function.calls.iter().any(|call| blocks(name, call, &blocking))
            })
            .map(|(name, _)| name.as_str())
            .collect();
        if new.is_empty() {
            break;
        }
        blocking.extend(new);
    }
    let mut found = Vec::new();
    for (name, function) in &functions {
        let calls = function.awaited.iter().filter(|call| blocks(name, call, &blocking));
        found.extend(calls.map(|call| format!("{}: {name} calls {call}", one.name)));
    }
    found
}

#[derive(Default)]
struct Reader {
    module: String,
    functions: BTreeMap<String, Function>,
    /// The type whose methods are read.
    of: Option<String>,
    /// The function that is read.
    at: Option<String>,
    /// Whether async code is read.
    within_async: bool,
}

impl Reader {
    fn function(&mut self, name: String, is_async: bool, read: impl FnOnce(&mut Self)) {
        let name = match &self.of {
            Some(of) => format!("{of}::{name}"),
            None => format!("{}::{name}", self.module),
        };
        let function = self.functions.entry(name.clone()).or_default();
        function.is_async |= is_async;
        function.module = self.module.clone();
        let before = (self.at.replace(name), self.within_async);
        self.within_async = is_async;
        read(self);
        (self.at, self.within_async) = before;
    }

    fn note(&mut self, call: String) {
        let Some(at) = &self.at else { return };
        let function = self.functions.get_mut(at).expect("it is read");
        match self.within_async {
            true => function.awaited.insert(call),
            false => function.calls.insert(call),
        };
    }
}

impl<'a> Visit<'a> for Reader {
    fn visit_item_mod(&mut self, item: &'a syn::ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_impl(&mut self, item: &'a ItemImpl) {
        if let Type::Path(of) = &*item.self_ty {
            let of = of.path.segments.last().map(|segment| segment.ident.to_string());
            let before = std::mem::replace(&mut self.of, of);
            visit::visit_item_impl(self, item);
            self.of = before;
        }
    }

    fn visit_item_fn(&mut self, item: &'a ItemFn) {
        if !is_test(&item.attrs) {
            let of = self.of.take();
            let name = item.sig.ident.to_string();
            self.function(name, item.sig.asyncness.is_some(), |reader| {
                visit::visit_item_fn(reader, item);
            });
            self.of = of;
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'a ImplItemFn) {
        let name = item.sig.ident.to_string();
        self.function(name, item.sig.asyncness.is_some(), |reader| {
            visit::visit_impl_item_fn(reader, item);
        });
    }

    fn visit_expr_async(&mut self, item: &'a ExprAsync) {
        let before = std::mem::replace(&mut self.within_async, true);
        visit::visit_expr_async(self, item);
        self.within_async = before;
    }

    /// A method that is awaited is async, whatever its name.
    fn visit_expr_await(&mut self, item: &'a ExprAwait) {
        match &*item.base {
            Expr::MethodCall(call) => {
                self.visit_expr(&call.receiver);
                call.args.iter().for_each(|argument| self.visit_expr(argument));
            }
            base => self.visit_expr(base),
        }
    }

    fn visit_expr_call(&mut self, call: &'a ExprCall) {
        if let Expr::Path(path) = &*call.func {
            let segments: Vec<String> =
                path.path.segments.iter().map(|segment| segment.ident.to_string()).collect();
            let last = segments.last().cloned().unwrap_or_default();
            if APART.contains(&last.as_str()) && call.args.iter().any(is_sync_closure) {
                return;
            }
            let mut name = match &segments[..] {
                [.., of, last] => format!("{of}::{last}"),
                _ => last.clone(),
            };
            if let (Some(of), Some(last)) = (&self.of, name.strip_prefix("Self::")) {
                name = format!("{of}::{last}");
            }
            self.note(name);
        }
        visit::visit_expr_call(self, call);
    }

    fn visit_expr_method_call(&mut self, call: &'a ExprMethodCall) {
        let method = call.method.to_string();
        if APART.contains(&method.as_str()) && call.args.iter().any(is_sync_closure) {
            return self.visit_expr(&call.receiver);
        }
        self.note(format!(".{method}"));
        visit::visit_expr_method_call(self, call);
    }
}

fn is_sync_closure(argument: &Expr) -> bool {
    matches!(argument, Expr::Closure(closure) if closure.asyncness.is_none())
        || matches!(argument, Expr::Path(_))
}
