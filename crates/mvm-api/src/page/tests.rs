//! Tests of the cursor's parser, and of lists that change while a client reads their pages.

use super::*;
use mvm_model::Code;
use proptest::prelude::*;
use std::collections::BTreeSet;

impl Listed for u16 {
    fn key(&self) -> Key {
        Key::number(u64::from(*self) / 7).then(self)
    }
}

fn page(query: &str) -> Result<Page, Problem> {
    Page::of_uri(&format!("/v1/things{query}").parse().expect("a path"))
}

/// Reads all pages. `change` may change the list before each.
fn walk(
    list: &mut BTreeSet<u16>,
    limit: usize,
    mut change: impl FnMut(&mut BTreeSet<u16>),
) -> Vec<u16> {
    let (mut seen, mut next) = (Vec::new(), format!("/v1/things?limit={limit}&tenant=ci"));
    loop {
        change(list);
        let page = Page::of_uri(&next.parse().expect("a path")).expect("a page");
        assert_eq!(page.rest(), "tenant=ci");
        let List { items, next: more } = page.of(list.iter().copied());
        assert!(items.len() <= limit && (more.is_none() || items.len() == limit));
        seen.extend(items);
        let Some(link) = more else { return seen };
        let link = format!("<{link}>; rel=\"next\"");
        next = next_of(&link).expect("a next page").to_owned();
    }
}

proptest! {
    #[test]
    fn a_key_survives_being_a_cursor(parts in proptest::collection::vec("[^\0]{0,40}", 1..4)) {
        let mut key = Key::of(&parts[0]);
        for part in &parts[1..] {
            key = key.then(part);
        }
        prop_assume!(!key.0.is_empty());
        let text = key.to_string();
        prop_assert_eq!(text.parse::<Key>().expect("a key"), key.clone());
        prop_assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
        let (first, rest) = key.split();
        prop_assert_eq!(first, &parts[0]);
        prop_assert_eq!(rest.is_some(), parts.len() > 1);
    }

    /// Any query is a page, or is refused with `invalid_value`.
    #[test]
    fn any_query_is_a_page_or_an_invalid_value(query in "[ -~]{0,60}") {
        let Ok(uri) = format!("/v1/things?{query}").parse::<Uri>() else { return Ok(()) };
        if let Err(problem) = Page::of_uri(&uri) {
            prop_assert_eq!((problem.status, problem.code), (400, Code::InvalidValue.into()));
        }
    }

    #[test]
    fn any_header_is_read(header in "\\PC{0,60}") {
        let _ = next_of(&header);
        let other = "</v1/x>; rel=\"prev\", </v1/y?a,b>; rel=\"next\"";
        prop_assert_eq!(next_of(other), Some("/v1/y?a,b"));
    }

    #[test]
    fn all_pages_are_the_whole_list(list: BTreeSet<u16>, limit in 1usize..40) {
        let mut list = list;
        let whole: Vec<u16> = page("").expect("a page").of(list.iter().copied()).items;
        prop_assert_eq!(walk(&mut list, limit, |_| {}), whole);
    }

    /// An item that exists from the first page to the last is listed once and in order, whatever is
    /// added or removed meanwhile.
    #[test]
    fn a_change_in_between_moves_nothing(
        stays: BTreeSet<u16>,
        others in proptest::collection::vec(any::<u16>(), 0..60),
        limit in 1usize..8,
    ) {
        let mut list = stays.clone();
        let mut others = others.into_iter().filter(|one| !stays.contains(one));
        let seen = walk(&mut list, limit, |list| {
            for other in others.by_ref().take(3) {
                if !list.remove(&other) {
                    list.insert(other);
                }
            }
        });
        prop_assert!(seen.windows(2).all(|pair| pair[0].key() < pair[1].key()));
        let of_those: BTreeSet<u16> = seen.into_iter().filter(|one| stays.contains(one)).collect();
        prop_assert_eq!(of_those, stays);
    }
}

#[test]
fn a_limit_is_a_number_of_items() {
    for bad in ["0", "10001", "-1", "+1", "1.5", "", "x", "99999999999999999999"] {
        let problem = page(&format!("?limit={bad}")).expect_err(bad);
        assert_eq!(problem.code, Code::InvalidValue);
    }
    for bad in ["?after=", "?after=a", "?after=%41", "?after=_w", "?limit=1&limit=2"] {
        assert_eq!(page(bad).expect_err(bad).code, Code::InvalidValue);
    }
    assert!(page(&format!("?after={}", "A".repeat(LONGEST + 4))).is_err());
    assert_eq!(page("?limit=10000").expect("a page").limit(), MOST);
    assert_eq!(page("").expect("a page").limit(), MOST);
    assert_eq!(Page::whole().of(0..20_000u16).items.len(), 20_000);
}
