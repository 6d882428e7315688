//! The host's end of copying files in and out as tar archives, over any byte stream.

use crate::frame::{self, Frame};
use crate::protocol::{Reply, Request};
use crate::{Error, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const PIECE: usize = 64 * 1024;

/// Unpacks `archive` below the folder `path` of the guest, which is made if it is not there.
pub async fn put(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    path: &str,
    mut archive: impl AsyncRead + Unpin,
) -> Result<()> {
    frame::ask::<()>(stream, Request::Put { path: path.to_owned() }).await?;
    let mut piece = vec![0; PIECE];
    loop {
        let count = archive.read(&mut piece).await.map_err(|cause| here("read", &cause))?;
        if count == 0 {
            break;
        }
        frame::write(stream, &Frame::Data(piece[..count].to_vec())).await?;
    }
    frame::write(stream, &Frame::End).await?;
    frame::reply(stream).await
}

/// Writes the file or folder `path` of the guest to `archive`, as a tar archive whose entries begin
/// with the last component of `path`. On an error what was written is incomplete.
pub async fn get(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    path: &str,
    mut archive: impl AsyncWrite + Unpin,
) -> Result<()> {
    frame::ask::<()>(stream, Request::Get { path: path.to_owned() }).await?;
    loop {
        match frame::read(stream).await? {
            Some(Frame::Data(bytes)) => {
                archive.write_all(&bytes).await.map_err(|cause| here("write", &cause))?;
            }
            Some(Frame::End) => {
                return archive.flush().await.map_err(|cause| here("write", &cause));
            }
            Some(Frame::Reply(Reply::Error { code, message })) => {
                return Err(Error::Guest { code, message });
            }
            Some(other) => return Err(Error::Broken(format!("{} in an archive", other.kind()))),
            None => return Err(Error::Broken("the archive ended too early".to_owned())),
        }
    }
}

fn here(doing: &'static str, cause: &std::io::Error) -> Error {
    Error::Archive { doing, cause: std::io::Error::new(cause.kind(), cause.to_string()) }
}
