//! Where the time is asked of the system.
//!
//! A clock is a value ([`mvm_clock::Clock`]) that is handed in, so that a test can set it for one part.
//! Only who makes one asks the system for the time. `Instant::now` measures durations, and stays.

use crate::imports::{Crate, is_test};
use syn::visit::{self, Visit};
use syn::{ExprMethodCall, ImplItemFn, ItemFn, ItemMod, ItemStatic, ItemUse, Path, UseTree};

/// Functions that return the system's time, or make a clock: the last two segments of a path.
const ASKING: [&str; 10] = [
    "Clock::open",
    "Clock::system",
    "ManualClock::running",
    "ManualClock::standing",
    "OffsetDateTime::now_utc",
    "SystemTime::now",
    "Timestamp::now",
    "UnixTime::now",
    "Zoned::now",
    "time::clock_gettime",
];

/// Where clocks are made, and where the time is none that a clock of ours should give.
pub const MAKERS: [(&str, &str); 6] = [
    ("mvm-coordinator: serve asks Clock::open", "makes the coordinator's clock"),
    ("mvm-guest: agent::adopt asks SystemTime::now", "runs in the guest, and sets its clock"),
    ("mvm-hypervisor: sim::host asks SystemTime::now", "names processes that are simulated"),
    ("mvm-image: types asks SystemTime::now", "is shown, and beside mvm-clock's floor"),
    ("mvm-node: serve asks Clock::open", "makes the agent's clock"),
    ("mvm: time asks Clock::system", "makes a command's clock"),
];

/// Returns where a crate, tests aside, asks the system for the time or keeps a clock for the whole
/// process: `crate: module asks Type::function`.
pub fn asked(one: &Crate) -> Vec<String> {
    let mut found = Vec::new();
    for (module, parts) in &one.modules {
        let mut asked = Asked(Vec::new());
        parts.items.iter().for_each(|item| asked.visit_item(item));
        found.extend(asked.0.into_iter().map(|what| format!("{}: {module} {what}", one.name)));
    }
    found
}

struct Asked(Vec<String>);

fn names(path: &Path) -> Vec<String> {
    path.segments.iter().map(|segment| segment.ident.to_string()).collect()
}

impl<'a> Visit<'a> for Asked {
    fn visit_item_mod(&mut self, item: &'a ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'a ItemFn) {
        if !is_test(&item.attrs) {
            visit::visit_item_fn(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'a ImplItemFn) {
        if !is_test(&item.attrs) {
            visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_path(&mut self, path: &'a Path) {
        let names = names(path);
        if let [.., of, by] = &names[..] {
            let call = format!("{of}::{by}");
            if ASKING.contains(&call.as_str()) || of == "mvm_clock" && is_function(by) {
                self.0.push(format!("asks {call}"));
            }
        }
        visit::visit_path(self, path);
    }

    /// `UNIX_EPOCH.elapsed()` is the wall clock as well.
    fn visit_expr_method_call(&mut self, call: &'a ExprMethodCall) {
        if let syn::Expr::Path(of) = &*call.receiver
            && names(&of.path).last().is_some_and(|name| name == "UNIX_EPOCH")
        {
            self.0.push(format!("asks UNIX_EPOCH.{}", call.method));
        }
        visit::visit_expr_method_call(self, call);
    }

    fn visit_item_use(&mut self, item: &'a ItemUse) {
        if let UseTree::Path(path) = &item.tree
            && path.ident == "mvm_clock"
        {
            let mut imported = Vec::new();
            imports(&path.tree, &mut imported);
            let functions = imported.into_iter().filter(|name| is_function(name));
            self.0.extend(functions.map(|name| format!("asks mvm_clock::{name}")));
        }
    }

    fn visit_item_static(&mut self, item: &'a ItemStatic) {
        let mut held = Held(false);
        held.visit_type(&item.ty);
        if held.0 {
            self.0.push(format!("keeps a clock for the whole process: {}", item.ident));
        }
        visit::visit_item_static(self, item);
    }
}

/// Whether a type has a clock in it.
struct Held(bool);

impl<'a> Visit<'a> for Held {
    fn visit_path(&mut self, path: &'a Path) {
        self.0 |= names(path).last().is_some_and(|name| name.ends_with("Clock"));
        visit::visit_path(self, path);
    }
}

fn is_function(name: &str) -> bool {
    name.starts_with(char::is_lowercase)
}

fn imports(tree: &UseTree, into: &mut Vec<String>) {
    match tree {
        UseTree::Path(path) => into.push(path.ident.to_string()),
        UseTree::Name(name) => into.push(name.ident.to_string()),
        UseTree::Rename(rename) => into.push(rename.ident.to_string()),
        UseTree::Glob(_) => into.push("all of it".to_owned()),
        UseTree::Group(group) => group.items.iter().for_each(|tree| imports(tree, into)),
    }
}
