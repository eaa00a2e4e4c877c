//! A socket with what is still to be written to it, and what was read from it and not yet used.

use std::io::{ErrorKind, Read, Write};

use mio::net::TcpStream;

#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) stream: TcpStream,
    unsent: Vec<u8>,
    /// Read and not used.
    pub(crate) unread: Vec<u8>,
}

/// The other side closed, or the connection broke.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Closed;

impl Wire {
    pub(crate) fn new(stream: TcpStream) -> Self {
        // Without it the pace of small chunks would be the kernel's.
        let _ = stream.set_nodelay(true);
        Self { stream, unsent: Vec::new(), unread: Vec::new() }
    }

    /// Reads what is there through `scratch`.
    pub(crate) fn read(&mut self, scratch: &mut [u8]) -> Result<(), Closed> {
        loop {
            match self.stream.read(scratch) {
                Ok(0) => return Err(Closed),
                Ok(size) => {
                    self.unread.extend_from_slice(scratch.get(..size).unwrap_or_default());
                    // Less than was asked for: the socket is empty, and its next bytes raise a new edge (epoll(7)).
                    if size < scratch.len() {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Closed),
            }
        }
    }

    /// Writes at once what can be written; the rest waits for [`Self::flush`].
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Closed> {
        if !self.unsent.is_empty() {
            self.unsent.extend_from_slice(bytes);
            return self.flush();
        }
        let sent = self.write_some(bytes)?;
        self.unsent.extend_from_slice(bytes.get(sent..).unwrap_or_default());
        Ok(())
    }

    pub(crate) fn flush(&mut self) -> Result<(), Closed> {
        if self.unsent.is_empty() {
            return Ok(());
        }
        let unsent = core::mem::take(&mut self.unsent);
        let sent = self.write_some(&unsent)?;
        self.unsent.extend_from_slice(unsent.get(sent..).unwrap_or_default());
        Ok(())
    }

    pub(crate) const fn is_flushed(&self) -> bool {
        self.unsent.is_empty()
    }

    fn write_some(&mut self, bytes: &[u8]) -> Result<usize, Closed> {
        let mut sent = 0;
        while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
            match self.stream.write(rest) {
                Ok(0) => return Err(Closed),
                Ok(size) => sent = sent.saturating_add(size),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Closed),
            }
        }
        Ok(sent)
    }
}
