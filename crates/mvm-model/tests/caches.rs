//! Caches: which are valid, and what happens to their content when they change.

mod support;

use mvm_model::cache::{change, disk_mib, same, validate};
use mvm_model::{Cache, CacheDisk, Code, Mib, Timestamp};
use proptest::prelude::*;

fn cache(name: &str, path: &str, size_mib: u64) -> Cache {
    Cache { name: name.parse().expect("a name"), path: path.to_owned(), size_mib: Mib(size_mib) }
}

#[test]
fn a_cache_has_a_place_that_a_job_can_have() {
    for path in ["/work/cache", "/root/.ccache", "/var/cache", "/data/x", "/nix/var", "/devel"] {
        assert_eq!(validate(&[cache("c", path, 64)]), Ok(()), "{path}");
    }
    let bad = [
        "", "/", "work", "/a/", "/a//b", "/a/../b", "/./a", "/a\n", "/proc", "/proc/x", "/run/x",
        "/dev/shm", "/nix", "/data",
    ];
    for path in bad {
        let fault = validate(&[cache("c", path, 64)]).expect_err(path);
        assert_eq!((fault.code, fault.path.as_str()), (Code::InvalidValue, "caches"), "{path}");
    }
    for size in [0, 15, (1 << 24) + 1, u64::MAX] {
        assert!(validate(&[cache("c", "/c", size)]).is_err(), "{size}");
    }
    let pairs = [
        ("a", "/x", "a", "/y"),
        ("a", "/x", "b", "/x"),
        ("a", "/x", "b", "/x/y"),
        ("a", "/x/y", "b", "/x"),
    ];
    for (one, at, other, there) in pairs {
        assert!(validate(&[cache(one, at, 64), cache(other, there, 64)]).is_err(), "{at} {there}");
    }
    assert!(validate(&[cache("a", "/x", 64), cache("b", "/xy", 64)]).is_ok());
    assert!(validate(&["/a", "/b", "/c"].map(|path| cache(&path[1..], path, 64))).is_err());
}

#[test]
fn what_is_kept_keeps_its_content() {
    let full = CacheDisk {
        cache: cache("a", "/a", 64),
        generation: 7,
        committed_at: Some(Timestamp::from_millis(9)),
    };
    let moved =
        change(std::slice::from_ref(&full), vec![cache("b", "/b", 32), cache("a", "/c", 64)]);
    let moved = moved.expect("a change");
    assert_eq!((moved[1].generation, moved[1].cache.path.as_str()), (7, "/c"));
    assert!(moved[1].has_content_of(&full) && !moved[0].has_content_of(&full));
    assert_eq!((moved[0].generation, moved[0].committed_at), (1, None));
    assert_eq!(disk_mib(&moved), Mib(96));
    assert!(!same(&moved, std::slice::from_ref(&full)));
    let resized = change(std::slice::from_ref(&full), vec![cache("a", "/a", 128)]);
    assert_eq!(resized.expect_err("another size").code, Code::Conflict);
    // A cache that was removed and made again is empty, and no generation number makes another
    // cache's content its own.
    let again = change(&[], vec![cache("a", "/a", 64)]).expect("a change").remove(0);
    let later = CacheDisk {
        generation: 7,
        committed_at: Some(Timestamp::from_millis(10)),
        ..again.clone()
    };
    assert!(!again.has_content_of(&full) && !later.has_content_of(&full));
    assert!(same(&[again], &[full]));
}

proptest! {
    #![proptest_config(support::cases(512))]

    #[test]
    fn any_text_is_a_cache_or_refused(text in "\\PC{0,40}|[a-z]{1,3}:/[a-z/.]{0,8}:[0-9]{1,9}") {
        if let Ok(cache) = text.parse::<Cache>() {
            let written = format!("{}:{}:{}", cache.name, cache.path, cache.size_mib.0);
            let read = written.parse::<Cache>();
            prop_assert_eq!(read.as_ref(), Ok(&cache));
            prop_assert_eq!(validate(&[cache]), Ok(()));
        }
    }
}
