//! A stream that stays readable when the other side takes no more.
//!
//! A node that refuses an upload answers and closes before it has read all of it. The answer is there to be read, but
//! HTTP stops at the first failed write and would say "broken pipe" instead of why. So from the first write that finds
//! the other side closed, everything written is dropped; reading goes on, and ends with the answer or with the truth.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

pub(super) struct StaysReadable<S> {
    stream: S,
    closed: bool,
}

impl<S> StaysReadable<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            closed: false,
        }
    }

    /// What a write gave, or `instead` once the other side has closed.
    fn judge<T>(&mut self, result: Poll<io::Result<T>>, instead: T) -> Poll<io::Result<T>> {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
        match result {
            Poll::Ready(Err(error))
                if matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset) =>
            {
                self.closed = true;
                Poll::Ready(Ok(instead))
            }
            result => result,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for StaysReadable<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for StaysReadable<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.closed {
            return Poll::Ready(Ok(bytes.len()));
        }
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(result, bytes.len())
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.closed {
            return Poll::Ready(Ok(()));
        }
        let result = Pin::new(&mut self.stream).poll_flush(context);
        self.judge(result, ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.closed {
            return Poll::Ready(Ok(()));
        }
        let result = Pin::new(&mut self.stream).poll_shutdown(context);
        self.judge(result, ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;

    #[tokio::test]
    async fn what_the_other_side_said_before_it_closed_is_read_after_failed_writes() {
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(b"refused").await.unwrap();
        drop(far);
        let mut near = StaysReadable::new(near);
        for _ in 0..3 {
            near.write_all(&[0; 100_000]).await.unwrap();
        }
        near.flush().await.unwrap();
        let mut said = String::new();
        near.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "refused");
    }
}
