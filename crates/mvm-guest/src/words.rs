//! Sanitises the words of a guest, which are data: someone who controls the machine may make it say
//! anything.

use crate::Error;
use mvm_archive::plain;
use mvm_code::Code;

/// The code for a guest's error whose own code is unknown.
pub const UNKNOWN: Code = Code::GuestError;

/// The longest message of a guest that is passed on, in characters.
const LONGEST: usize = 2000;

/// The codes that an answer may have: the guest's own, and those with which an agent ends a session
/// whose machine it has ended.
pub const CODES: [Code; 23] = [
    Code::ArchiveIo,
    Code::Busy,
    Code::CommandNotExecutable,
    Code::CommandNotFound,
    Code::ConnectionRefused,
    Code::Destroyed,
    Code::GuestChannelBroken,
    Code::GuestIo,
    Code::GuestRestarted,
    Code::GuestSilent,
    Code::GuestUnreachable,
    Code::InstanceFailed,
    Code::InvalidNetwork,
    Code::InvalidValue,
    Code::LeaseEnded,
    Code::MachineDied,
    Code::NoNetworkCard,
    Code::NoSpace,
    Code::NotAllowed,
    Code::NotFound,
    Code::PermissionDenied,
    Code::SessionLost,
    Code::TakenOver,
];

/// Turns a guest's answer into an error: with a code from a fixed list, and a message of bounded
/// length on one line that cannot move the cursor.
pub fn said(code: &str, message: &str) -> Error {
    let known = Code::of(code).filter(|known| CODES.contains(known));
    Error::Guest { code: known.unwrap_or(UNKNOWN), message: plain(message, LONGEST) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_has_no_codes_of_its_own_and_moves_no_cursor() {
        let Error::Guest { code, message } = said("not_found", "read /a: not there") else {
            panic!("another error");
        };
        assert_eq!((code, &*message), (Code::NotFound, "read /a: not there"));
        for forged in ["quota_exceeded", "", "no_space\r\nerror[x]", &"x".repeat(1 << 20)] {
            let words = format!("a\r\nb\u{1b}[2J\u{9b}1m\u{202e}{}", "x".repeat(1 << 20));
            let Error::Guest { code, message } = said(forged, &words) else {
                panic!("another error");
            };
            assert_eq!(code, UNKNOWN);
            assert!(message.starts_with("a\\r\\nb\\u{1b}[2J\\u{9b}1m\\u{202e}xx"), "{message:.40}");
            assert!(message.len() < 3000, "{}", message.len());
        }
    }
}
