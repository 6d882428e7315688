//! Reads what a machine sends over a socket, until a deadline.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use tokio::time::Instant;

/// Shuts a stream down when dropped, so that a read of it ends in whatever thread.
struct ShutDown(UnixStream);

impl Drop for ShutDown {
    fn drop(&mut self) {
        // It fails only if the other side has closed the stream already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// Reads a stream with `read` in a thread of its own. At the deadline, or when the future is
/// dropped, the stream is shut down, so that the thread ends however slowly the machine sends.
/// Error: `TimedOut` at the deadline, and those of `read`.
pub(super) async fn read_until<T: Send + 'static>(
    ends: Instant,
    stream: UnixStream,
    read: impl FnOnce(&UnixStream) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let guard = ShutDown(stream.try_clone()?);
    let mut reading = tokio::task::spawn_blocking(move || read(&stream));
    match tokio::time::timeout_at(ends, &mut reading).await {
        Ok(done) => done.map_err(io::Error::other)?,
        Err(_) => {
            drop(guard);
            // What it has read is incomplete, even if it ends as after the whole.
            drop(reading.await);
            Err(io::ErrorKind::TimedOut.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::time::Duration;

    /// Sends a byte now and then, until nobody reads any more.
    fn trickle(mut to: UnixStream) -> std::thread::JoinHandle<io::ErrorKind> {
        std::thread::spawn(move || {
            loop {
                if let Err(error) = to.write_all(b"x") {
                    return error.kind();
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        })
    }

    fn whole(mut from: &UnixStream) -> io::Result<usize> {
        from.read_to_end(&mut Vec::new())
    }

    /// No single read takes long, but all together never end.
    #[tokio::test]
    async fn a_sender_that_trickles_is_cut_off() {
        let (near, far) = UnixStream::pair().expect("sockets");
        let sender = trickle(far);
        let ends = Instant::now() + Duration::from_millis(50);
        let error = read_until(ends, near, whole).await.expect_err("it never ends");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(sender.join().expect("it ends"), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn a_sender_is_cut_off_if_nobody_waits_any_more() {
        let (near, far) = UnixStream::pair().expect("sockets");
        let sender = trickle(far);
        let ends = Instant::now() + Duration::from_secs(600);
        let reading = tokio::spawn(read_until(ends, near, whole));
        tokio::time::sleep(Duration::from_millis(20)).await;
        reading.abort();
        assert!(reading.await.expect_err("it was ended").is_cancelled());
        assert_eq!(sender.join().expect("it ends"), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn what_is_sent_in_time_is_read() {
        let (near, mut far) = UnixStream::pair().expect("sockets");
        far.write_all(&[7; 1000]).expect("sent");
        drop(far);
        let ends = Instant::now() + Duration::from_secs(600);
        assert_eq!(read_until(ends, near, whole).await.expect("read"), 1000);
    }
}
