//! Records sessions with guests in the audit log. The requests are read as they pass.

use super::final_frame::FinalFrame;
use super::{Act, Audit};
use crate::Error;
use mvm_guest::frame::{self, Frame, MAX_PAYLOAD};
use mvm_guest::protocol::Request;
use mvm_model::Name;
use mvm_model::audit::{Entry, OK, bounded};
use std::io::Result;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Length of a frame's kind and length fields.
const HEAD: usize = 5;
/// The size of one piece that is copied; large, since files are copied, too.
const PIECE: usize = 64 * 1024;

/// Copies between a client and a guest until either ends. The request is in the tenant's log before
/// the guest gets it, and the end of the session once it has ended. Where the agent has ended the
/// machine, `why` returns the reason for the client.
pub async fn pass<C, G>(
    audit: &Arc<Audit>,
    tenant: &Name,
    entry: Entry,
    client: &mut C,
    guest: &mut G,
    why: impl Fn() -> Option<Arc<Error>> + Unpin,
) where
    C: AsyncRead + AsyncWrite + Unpin,
    G: AsyncRead + AsyncWrite + Unpin,
{
    let mut early = [0];
    let request = tokio::select! {
        request = first(client) => request,
        // A guest that speaks before it is asked is broken, or is ending.
        _ = guest.read(&mut early) => return,
    };
    let Ok(request) = request else { return };
    if request.is_empty() {
        return;
    }
    let (verb, program) = describe(&request).await;
    let framed = matches!(&*verb, "session.exec" | "session.put" | "session.get");
    let act = match Act::begin(audit, Some(tenant), Entry { verb, program, ..entry }) {
        Ok(act) => act,
        // A session that cannot be logged is refused.
        Err(error) => return tracing::error!("a session is refused: {error}"),
    };
    if guest.write_all(&request).await.is_ok() && guest.flush().await.is_ok() {
        let mut guest = FinalFrame::new(guest, || why().filter(|_| framed));
        if tokio::io::copy_bidirectional_with_sizes(client, &mut guest, PIECE, PIECE).await.is_err()
        {
            let _ = client.write_all(&guest.take_frame()).await;
            let _ = client.flush().await;
        }
    }
    act.end(OK).await;
}

/// Reads the first frame as it came; fewer bytes where the client ends or sends no frame.
async fn first(client: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    (&mut *client).take(HEAD as u64).read_to_end(&mut bytes).await?;
    let length = bytes.get(1..HEAD).and_then(|b| Some(u32::from_be_bytes(b.try_into().ok()?)));
    // A longer one is not a frame, and the guest refuses it.
    if let Some(length) = length.filter(|length| *length as usize <= MAX_PAYLOAD) {
        client.take(u64::from(length)).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

/// Returns the request's verb, and the program that it runs.
async fn describe(frame: &[u8]) -> (String, Option<String>) {
    let mut program = None;
    let what = match frame::read(&mut &frame[..]).await {
        Ok(Some(Frame::Request(request))) => match request {
            Request::Exec(exec) => {
                program = exec.argv.first().map(|program| bounded(program));
                "exec"
            }
            Request::Connect { .. } => "connect",
            Request::Put { .. } => "put",
            Request::Get { .. } => "get",
            Request::Shutdown => "shutdown",
            Request::Adopt(_) => "adopt",
            Request::Sync => "sync",
            Request::Mount { .. } => "mount",
            Request::Unmount { .. } => "unmount",
            Request::Hello => "hello",
            Request::Stats => "stats",
        },
        _ => "unknown",
    };
    (format!("session.{what}"), program)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mvm_clock::Clock;
    use mvm_guest::protocol::ExecRequest;

    async fn bytes_of(frame: &Frame) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame::write(&mut bytes, frame).await.expect("memory");
        bytes
    }

    #[tokio::test]
    async fn a_session_is_logged_by_its_request_and_passed_on_unchanged() {
        let dir = tempfile::tempdir().expect("directory");
        let audit =
            Arc::new(Audit::open(dir.path().join("audit"), Clock::system()).expect("audit"));
        let argv = ["make", "--password=secret"].map(str::to_owned).to_vec();
        let env = [("TOKEN".to_owned(), "secret".to_owned())].into();
        let request =
            Frame::Request(Request::Exec(ExecRequest { argv, env, ..Default::default() }));
        let (mut near, mut client) = tokio::io::duplex(4096);
        let (mut far, mut guest) = tokio::io::duplex(4096);
        let tenant: Name = "ci".parse().expect("name");
        let entry = Entry { actor: "uid:0".into(), target: "ci/a/i-1".into(), ..Entry::default() };
        let (log, whose) = (audit.clone(), tenant.clone());
        let passing = tokio::spawn(async move {
            pass(&log, &whose, entry, &mut client, &mut guest, || None).await
        });
        let mut sent = bytes_of(&request).await;
        sent.extend(b"more");
        near.write_all(&sent).await.expect("send");
        let mut came = vec![0; sent.len()];
        far.read_exact(&mut came).await.expect("receive");
        assert_eq!(came, sent);
        far.write_all(b"answer").await.expect("send");
        let mut answer = [0; 6];
        near.read_exact(&mut answer).await.expect("receive");
        drop((near, far));
        passing.await.expect("end");
        let text = std::fs::read_to_string(&audit.files("ci")[0]).expect("log");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(!text.contains("secret") && !text.contains("TOKEN"), "{text}");
        let [begun, ended] =
            [0, 1].map(|at| mvm_model::audit::read(lines[at].as_bytes()).expect("record"));
        assert_eq!(begun.record.entry.program.as_deref(), Some("make"));
        assert_eq!(begun.record.entry.verb, "session.exec");
        assert_eq!(ended.record.entry.of, Some(begun.record.number));
        assert_eq!(ended.record.entry.outcome.as_deref(), Some(OK));
    }

    #[tokio::test]
    async fn what_is_no_request_is_unknown() {
        for bytes in
            [&b""[..], b"\x01", b"\x63\0\0\0\0", b"\x01\0\0\0\x02{}", b"\x01\xff\xff\xff\xff"]
        {
            let mut from = bytes;
            let request = first(&mut from).await.expect("memory");
            assert_eq!(request, bytes);
            assert_eq!(describe(&request).await.0, "session.unknown");
        }
        let connect = bytes_of(&Frame::Request(Request::Connect { port: 22 })).await;
        assert_eq!(describe(&connect).await.0, "session.connect");
    }
}
