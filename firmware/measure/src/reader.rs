//! Reads big-endian or little-endian numbers and sized fields from bytes; never beyond their end.

/// The bytes that are left.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

/// The bytes end before the field does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CutOff;

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8], CutOff> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(CutOff)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], CutOff> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(CutOff)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, CutOff> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, CutOff> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, CutOff> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, CutOff> {
        self.array().map(u64::from_be_bytes)
    }

    pub(crate) fn u16_le(&mut self) -> Result<u16, CutOff> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32_le(&mut self) -> Result<u32, CutOff> {
        self.array().map(u32::from_le_bytes)
    }

    /// A `TPM2B`: size, then that many bytes.
    pub(crate) fn sized(&mut self) -> Result<&'a [u8], CutOff> {
        let size = self.u16()?;
        self.take(usize::from(size))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
