//! Detects servers that hang. A stopped or hanging server's kernel still accepts connections, so a
//! server that takes long over a request is asked whether it is alive.

use super::connect::Target;
use super::error::ClientError;
use http_body_util::Empty;
use hyper::Request;
use hyper::body::Bytes;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// How long a request may take before the server is asked whether it is alive, and the rest between
/// such questions.
const REST: Duration = Duration::from_secs(10);
/// How long the answer to that question may take. The server needs no lock and no disk for it.
const ANSWER: Duration = Duration::from_secs(30);

impl Target {
    /// Waits for `work`, the answer of this server to a request, for as long as the server is
    /// alive.
    pub(super) async fn answers<T>(&self, work: impl Future<Output = T>) -> Result<T, ClientError> {
        self.while_there(work, REST, ANSWER).await
    }

    async fn while_there<T>(
        &self,
        work: impl Future<Output = T>,
        rest: Duration,
        answer: Duration,
    ) -> Result<T, ClientError> {
        let silent = async {
            loop {
                sleep(rest).await;
                if timeout(answer, self.says_something()).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            done = work => Ok(done),
            () = silent => Err(ClientError::Silent { at: self.to_string(), waited: rest + answer }),
        }
    }

    /// Resolves when the server answers anything, or when it cannot be reached: then the connection
    /// of the waiting request breaks by itself.
    async fn says_something(&self) {
        let Ok(mut sender) = self.connect::<Empty<Bytes>>("GET /").await else {
            return;
        };
        let request = Request::get("/").header("host", crate::identity::SERVER_NAME);
        if let Ok(request) = request.body(Empty::new()) {
            let _ = sender.send_request(request).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mvm_model::Code;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    const SHORT: Duration = Duration::from_millis(100);

    fn target(dir: &tempfile::TempDir) -> (UnixListener, Target) {
        let socket = dir.path().join("socket");
        (UnixListener::bind(&socket).expect("bind"), Target::Unix(socket))
    }

    #[tokio::test]
    async fn who_takes_connections_and_says_nothing_is_given_up() {
        let dir = tempfile::tempdir().expect("directory");
        let (_listener, target) = target(&dir);
        let never = std::future::pending::<()>();
        let error = target.while_there(never, SHORT, SHORT).await.expect_err("silence");
        assert_eq!(error.code(), Some(Code::AgentSilent));
        let problem = error.into_problem();
        assert!(problem.detail.contains("has not answered"), "{problem:?}");
    }

    #[tokio::test]
    async fn who_says_anything_is_waited_for() {
        let dir = tempfile::tempdir().expect("directory");
        let (listener, target) = target(&dir);
        let server = tokio::spawn(async move {
            for asked in 0.. {
                let (mut stream, _) = listener.accept().await.expect("accept");
                let _ = stream.read(&mut [0; 1024]).await;
                let answer = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
                stream.write_all(answer).await.expect("answer");
                if asked == 3 {
                    return;
                }
            }
        });
        // The work takes longer than four questions do.
        let limit = Duration::from_secs(60);
        let done = target.while_there(server, SHORT, limit).await.expect("an answer");
        done.expect("four questions");
    }
}
