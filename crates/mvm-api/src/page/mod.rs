//! Lists in pages: `?limit=N&after=CURSOR`, and `Link: <…>; rel="next"` (RFC 8288) where more items
//! follow.
//!
//! Every list is in the order of its items' keys. A cursor is the key of the last item of the page
//! before, not a count, so additions and removals between two pages shift nothing: an item that
//! exists throughout is listed once.

use crate::Problem;
use crate::audit::AuditLogView;
use crate::expose::ExposeView;
use crate::fleet::NodeView;
use crate::jobs::JobView;
use crate::types::{
    EventView, IdentityView, ImageView, InstanceView, KernelView, LeaseView, PoolView,
    RevisionView, TenantView,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use http::Uri;
use mvm_model::{Code, InstanceRef};
use std::fmt;
use std::str::FromStr;

/// The most items of a page, and the number of items where the request gives no limit.
pub const MOST: usize = 10_000;
/// The longest cursor, in characters.
pub const LONGEST: usize = 2048;

/// The sort key of an item in a list: parts that are compared one after the other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(String);

/// The separator of a key's parts. It sorts before every character that a part may hold.
const BETWEEN: char = '\0';

impl Key {
    /// Makes a key of one part.
    pub fn of(part: impl fmt::Display) -> Key {
        Key(part.to_string())
    }

    /// Makes a key of one number.
    pub fn number(number: u64) -> Key {
        Key(format!("{number:020}"))
    }

    /// Appends a part.
    pub fn then(self, part: impl fmt::Display) -> Key {
        Key(format!("{}{BETWEEN}{part}", self.0))
    }

    /// Returns the first part, and the rest where there is one.
    pub fn split(&self) -> (&str, Option<&str>) {
        match self.0.split_once(BETWEEN) {
            Some((first, rest)) => (first, Some(rest)),
            None => (&self.0, None),
        }
    }
}

/// Writes the key as a cursor: base64url.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(&self.0))
    }
}

impl FromStr for Key {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Key, Problem> {
        let bytes = Some(text).filter(|text| (1..=LONGEST).contains(&text.len()));
        let bytes = bytes.and_then(|text| BASE64.decode(text).ok());
        bytes.and_then(|bytes| String::from_utf8(bytes).ok()).map(Key).ok_or_else(|| {
            invalid("`after` is not a valid cursor")
                .hint("take it from the Link of the page before")
        })
    }
}

fn invalid(detail: impl Into<String>) -> Problem {
    Problem::new(Code::InvalidValue, detail)
}

/// An item of a list.
pub trait Listed {
    /// Returns the sort key: unique within the list, and the same for the item's whole life.
    fn key(&self) -> Key;
}

/// The part of a list that a request asks for.
#[derive(Clone, Debug)]
pub struct Page {
    /// The path of the request.
    path: String,
    /// The other query parameters, as the request has them.
    rest: String,
    given: Option<usize>,
    after: Option<Key>,
    limit: usize,
}

impl Page {
    /// Returns the page that holds a whole list of any length, for internal use.
    pub fn whole() -> Page {
        let (path, rest) = Default::default();
        Page { path, rest, given: None, after: None, limit: usize::MAX }
    }

    /// Parses the page that a request asks for. Errors: `invalid_value`.
    pub fn of_uri(uri: &Uri) -> Result<Page, Problem> {
        let mut page = Page { path: uri.path().to_owned(), limit: MOST, ..Page::whole() };
        let mut rest = Vec::new();
        for pair in uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("limit", _)) if page.given.is_some() => {
                    return Err(invalid("`limit` is given twice"));
                }
                Some(("after", _)) if page.after.is_some() => {
                    return Err(invalid("`after` is given twice"));
                }
                Some(("limit", value)) => page.given = Some(limit(value)?),
                Some(("after", value)) => page.after = Some(value.parse()?),
                _ => rest.push(pair),
            }
        }
        page.limit = page.given.unwrap_or(MOST);
        page.rest = rest.join("&");
        Ok(page)
    }

    /// Returns the most items of the page.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Returns the request's limit, if it has one.
    pub fn given(&self) -> Option<usize> {
        self.given
    }

    /// Returns the key that all items of the page come after.
    pub fn after(&self) -> Option<&Key> {
        self.after.as_ref()
    }

    /// Returns the query parameters other than `limit` and `after`, as the request has them.
    pub fn rest(&self) -> &str {
        &self.rest
    }

    /// Returns the page's part of `items`, which may be in any order.
    pub fn of<T: Listed>(&self, items: impl IntoIterator<Item = T>) -> List<T> {
        let keyed = items.into_iter().map(|item| (item.key(), item));
        let after = |key: &Key| self.after.as_ref().is_none_or(|after| key > after);
        let mut keyed: Vec<(Key, T)> = keyed.filter(|(key, _)| after(key)).collect();
        keyed.sort_by(|(one, _), (other, _)| one.cmp(other));
        let more = keyed.len() > self.limit;
        keyed.truncate(self.limit);
        let next = keyed.last().filter(|_| more).map(|(key, _)| self.next(key));
        List { items: keyed.into_iter().map(|(_, item)| item).collect(), next }
    }

    /// Returns the path of the page that begins after this key.
    pub fn next(&self, after: &Key) -> String {
        let limit = self.given.map(|limit| format!("limit={limit}&")).unwrap_or_default();
        let rest = if self.rest.is_empty() { "" } else { "&" };
        format!("{}?{limit}after={after}{rest}{}", self.path, self.rest)
    }
}

fn limit(text: &str) -> Result<usize, Problem> {
    let number = text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok());
    number.flatten().filter(|limit| (1..=MOST).contains(limit)).ok_or_else(|| {
        invalid("`limit` is not a valid number of items").hint(format!("allowed are 1 to {MOST}"))
    })
}

/// A page of a list: items, and the path of the next page if there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List<T> {
    /// The items of the page.
    pub items: Vec<T>,
    /// The path of the next page; `None` on the last one.
    pub next: Option<String>,
}

/// Returns the target of the link to the next page in a `Link` header.
pub fn next_of(header: &str) -> Option<&str> {
    let mut left = header;
    loop {
        let (target, after) = left.split_once('<')?.1.split_once('>')?;
        let parameters = after.split('<').next().unwrap_or_default();
        let mut parameters = parameters.split([';', ',']).map(str::trim);
        if parameters.any(|one| one == "rel=\"next\"" || one == "rel=next") {
            return Some(target);
        }
        left = after;
    }
}

/// Returns the cursor in the path of a next page.
pub fn cursor_of(next: &str) -> Option<Key> {
    Page::of_uri(&next.parse().ok()?).ok()?.after
}

impl Listed for TenantView {
    fn key(&self) -> Key {
        Key::of(&self.tenant_id)
    }
}

impl Listed for PoolView {
    fn key(&self) -> Key {
        Key::of(&self.tenant_id).then(&self.pool_id)
    }
}

impl Listed for RevisionView {
    fn key(&self) -> Key {
        Key::number(self.entry.number.into())
    }
}

impl Listed for InstanceRef {
    fn key(&self) -> Key {
        Key::of(self.id)
    }
}

impl Listed for InstanceView {
    fn key(&self) -> Key {
        self.reference.key()
    }
}

/// Sorted by instance: an instance has one lease at a time.
impl Listed for LeaseView {
    fn key(&self) -> Key {
        self.instance.key()
    }
}

/// Sorted by time, oldest first.
impl Listed for JobView {
    fn key(&self) -> Key {
        Key::number(self.created_at.as_millis()).then(self.job_id)
    }
}

impl Listed for EventView {
    fn key(&self) -> Key {
        Key::number(self.event.id)
    }
}

impl Listed for ExposeView {
    fn key(&self) -> Key {
        Key::of(&self.tenant_id).then(&self.pool_id).then(self.listen)
    }
}

impl Listed for AuditLogView {
    fn key(&self) -> Key {
        Key::of(&self.log)
    }
}

impl Listed for KernelView {
    fn key(&self) -> Key {
        Key::of(&self.name).then(self.digest)
    }
}

/// Sorted by time, newest first.
impl Listed for ImageView {
    fn key(&self) -> Key {
        Key::number(u64::MAX - self.built_at.as_millis()).then(self.digest)
    }
}

impl Listed for NodeView {
    fn key(&self) -> Key {
        Key::of(&self.node_id)
    }
}

impl Listed for IdentityView {
    fn key(&self) -> Key {
        Key::of(&self.identity)
    }
}

#[cfg(test)]
mod tests;
