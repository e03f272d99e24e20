//! Response codes with the names of TPM Library part 2, table 16.

use std::fmt;

/// TPM_RC: 0 for success, otherwise why the TPM refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ResponseCode(pub u32);

impl ResponseCode {
    /// The command was executed.
    pub const SUCCESS: ResponseCode = ResponseCode(0);
    /// The TPM was not able to start the command now: send it again.
    pub const RETRY: ResponseCode = ResponseCode(0x922);
    /// The command needs TPM2_Startup first.
    pub const INITIALIZE: ResponseCode = ResponseCode(0x100);
    /// No such handle (any position).
    pub const HANDLE: ResponseCode = ResponseCode(0x08B);
    /// A policy did not hold (any position).
    pub const POLICY_FAIL: ResponseCode = ResponseCode(0x09D);
    /// The NV index exists already.
    pub const NV_DEFINED: ResponseCode = ResponseCode(0x14C);
    /// The NV index was never written.
    pub const NV_UNINITIALIZED: ResponseCode = ResponseCode(0x14A);
    /// The authorisation of a session or password is wrong (any position).
    pub const BAD_AUTH: ResponseCode = ResponseCode(0x0A2);
    /// The command code is not implemented.
    pub const COMMAND_CODE: ResponseCode = ResponseCode(0x143);

    /// The code without the number of the handle, session or parameter it complains about.
    pub fn base(self) -> ResponseCode {
        if self.0 & 0x80 != 0 {
            ResponseCode(self.0 & 0xBF)
        } else {
            self
        }
    }

    /// The name in the specification, without `TPM_RC_`.
    pub fn name(self) -> &'static str {
        match self.base().0 {
            0x000 => "SUCCESS",
            0x100 => "INITIALIZE",
            0x101 => "FAILURE",
            0x103 => "SEQUENCE",
            0x10B => "PRIVATE",
            0x119 => "HMAC",
            0x120 => "DISABLED",
            0x121 => "EXCLUSIVE",
            0x124 => "AUTH_TYPE",
            0x125 => "AUTH_MISSING",
            0x126 => "POLICY",
            0x127 => "PCR",
            0x128 => "PCR_CHANGED",
            0x12D => "UPGRADE",
            0x12E => "TOO_MANY_CONTEXTS",
            0x12F => "AUTH_UNAVAILABLE",
            0x130 => "REBOOT",
            0x131 => "UNBALANCED",
            0x142 => "COMMAND_SIZE",
            0x143 => "COMMAND_CODE",
            0x144 => "AUTHSIZE",
            0x145 => "AUTH_CONTEXT",
            0x146 => "NV_RANGE",
            0x147 => "NV_SIZE",
            0x148 => "NV_LOCKED",
            0x149 => "NV_AUTHORIZATION",
            0x14A => "NV_UNINITIALIZED",
            0x14B => "NV_SPACE",
            0x14C => "NV_DEFINED",
            0x150 => "BAD_CONTEXT",
            0x151 => "CPHASH",
            0x152 => "PARENT",
            0x153 => "NEEDS_TEST",
            0x154 => "NO_RESULT",
            0x155 => "SENSITIVE",
            0x081 => "ASYMMETRIC",
            0x082 => "ATTRIBUTES",
            0x083 => "HASH",
            0x084 => "VALUE",
            0x085 => "HIERARCHY",
            0x087 => "KEY_SIZE",
            0x088 => "MGF",
            0x089 => "MODE",
            0x08A => "TYPE",
            0x08B => "HANDLE",
            0x08C => "KDF",
            0x08D => "RANGE",
            0x08E => "AUTH_FAIL",
            0x08F => "NONCE",
            0x090 => "PP",
            0x092 => "SCHEME",
            0x095 => "SIZE",
            0x096 => "SYMMETRIC",
            0x097 => "TAG",
            0x098 => "SELECTOR",
            0x09A => "INSUFFICIENT",
            0x09B => "SIGNATURE",
            0x09C => "KEY",
            0x09D => "POLICY_FAIL",
            0x09F => "INTEGRITY",
            0x0A0 => "TICKET",
            0x0A1 => "RESERVED_BITS",
            0x0A2 => "BAD_AUTH",
            0x0A3 => "EXPIRED",
            0x0A4 => "POLICY_CC",
            0x0A5 => "BINDING",
            0x0A6 => "CURVE",
            0x0A7 => "ECC_POINT",
            0x901 => "CONTEXT_GAP",
            0x902 => "OBJECT_MEMORY",
            0x903 => "SESSION_MEMORY",
            0x904 => "MEMORY",
            0x905 => "SESSION_HANDLES",
            0x906 => "OBJECT_HANDLES",
            0x907 => "LOCALITY",
            0x908 => "YIELDED",
            0x909 => "CANCELED",
            0x90A => "TESTING",
            0x910..=0x916 => "REFERENCE_H",
            0x918..=0x91E => "REFERENCE_S",
            0x920 => "NV_RATE",
            0x921 => "LOCKOUT",
            0x922 => "RETRY",
            0x923 => "NV_UNAVAILABLE",
            _ => "unknown",
        }
    }
}

impl fmt::Display for ResponseCode {
    /// `TPM_RC_HANDLE (0x18b)`, with the handle, parameter or session that it complains about.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TPM_RC_{} (0x{:03x}", self.name(), self.0)?;
        let number = self.0 >> 8 & 0xF;
        match (self.0 & 0x80 != 0, self.0 & 0x40 != 0, number) {
            (false, ..) | (true, _, 0) => f.write_str(")"),
            (true, true, _) => write!(f, ", parameter {number})"),
            (true, false, 1..=7) => write!(f, ", handle {number})"),
            (true, false, _) => write!(f, ", session {})", number & 7),
        }
    }
}

impl fmt::Debug for ResponseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_printed_with_what_they_complain_about() {
        assert_eq!(ResponseCode(0x18B).to_string(), "TPM_RC_HANDLE (0x18b, handle 1)");
        assert_eq!(ResponseCode(0x9A2).to_string(), "TPM_RC_BAD_AUTH (0x9a2, session 1)");
        assert_eq!(ResponseCode(0x2D5).to_string(), "TPM_RC_SIZE (0x2d5, parameter 2)");
        assert_eq!(ResponseCode::RETRY.to_string(), "TPM_RC_RETRY (0x922)");
        assert_eq!(ResponseCode(0x918).name(), "REFERENCE_S");
        assert_eq!(ResponseCode(0x18B).base(), ResponseCode::HANDLE);
    }
}
