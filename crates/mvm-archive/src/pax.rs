//! Records of PAX headers (pax(1), "pax Header Block"): `LENGTH KEY=VALUE\n`.

use crate::Time;
use std::io;

/// Appends a record. The value may hold any bytes, including newlines: the length delimits it.
pub fn put(to: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    // The length counts its own digits.
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    to.extend_from_slice(format!("{length} ").as_bytes());
    to.extend_from_slice(key);
    to.push(b'=');
    to.extend_from_slice(value);
    to.push(b'\n');
}

/// Returns the records of a header. They are cut by their lengths, so that no value can pass for a
/// record.
pub fn records(mut bytes: &[u8]) -> io::Result<Vec<(&[u8], &[u8])>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let (record, rest) = record(bytes).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "the archive has a malformed PAX header")
        })?;
        found.push(record);
        bytes = rest;
    }
    Ok(found)
}

type Record<'a> = (&'a [u8], &'a [u8]);

fn record(bytes: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    if length <= space || length > bytes.len() {
        return None;
    }
    let (record, rest) = bytes.split_at(length);
    let body = record[space + 1..].strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    Some(((&body[..equals], &body[equals + 1..]), rest))
}

/// Formats a time as a decimal number of seconds.
pub fn show_time(time: Time) -> String {
    let (seconds, nanos) = (time.seconds, time.nanos);
    if seconds < 0 && nanos > 0 {
        let whole = (seconds + 1).unsigned_abs();
        return format!("-{whole}.{:09}", 1_000_000_000 - nanos);
    }
    match nanos {
        0 => seconds.to_string(),
        _ => format!("{seconds}.{nanos:09}"),
    }
}

/// Reads a decimal number of seconds; digits past the nanoseconds are dropped. `None` if it is
/// malformed.
pub fn parse_time(text: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(text).ok()?;
    let (minus, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let seconds = i64::try_from(whole.parse::<u64>().ok()?).ok()?;
    let nanos: u32 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    Some(match (minus, nanos) {
        (false, _) => Time { seconds, nanos },
        (true, 0) => Time { seconds: -seconds, nanos: 0 },
        (true, _) => Time { seconds: -seconds - 1, nanos: 1_000_000_000 - nanos },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_put_is_found(all in prop::collection::vec(
            ("[a-z.]{1,40}", prop::collection::vec(any::<u8>(), 0..1200)), 0..8,
        )) {
            let mut bytes = Vec::new();
            for (key, value) in &all {
                put(&mut bytes, key.as_bytes(), value);
            }
            let found = records(&bytes).expect("records");
            let wanted: Vec<_> = all.iter().map(|(k, v)| (k.as_bytes(), &v[..])).collect();
            prop_assert_eq!(found, wanted);
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = records(&bytes);
            let _ = parse_time(&bytes);
        }

        #[test]
        fn times_keep_their_nanoseconds(seconds in -1i64 << 40..1 << 40, nanos in 0..1_000_000_000u32) {
            let time = Time { seconds, nanos };
            prop_assert_eq!(parse_time(show_time(time).as_bytes()), Some(time));
        }
    }
}
