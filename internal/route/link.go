package route

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"time"
)

// A signed link lets its holder reach one port of one VM until a time. The token is
// base64url of a head and of its HMAC, which also covers the VM's id:
//
//	kind (1 byte) | end, Unix seconds (8) | port (2) | generation (8) | HMAC-SHA256 (32)
//
// The generation is a number of the VM: a higher one ends all links before. The cookie
// that follows a link has the same form and another kind, so that neither is accepted as
// the other.
type link struct {
	kind       byte
	until      time.Time // of whole seconds
	port       int
	generation int64
}

// The kinds.
const (
	linkKind   = 1
	cookieKind = 2
)

const (
	linkHead  = 1 + 8 + 2 + 8
	linkBytes = linkHead + sha256.Size
)

// linkText is what the HMAC begins with, so that the secret can sign nothing else.
const linkText = "hatch signed link\x00"

// sign returns the token of a link to a VM.
func (l link) sign(secret []byte, vmID string) string {
	b := make([]byte, 0, linkBytes)
	b = append(b, l.kind)
	b = binary.BigEndian.AppendUint64(b, uint64(l.until.Unix()))
	b = binary.BigEndian.AppendUint16(b, uint16(l.port))
	b = binary.BigEndian.AppendUint64(b, uint64(l.generation))
	return base64.RawURLEncoding.EncodeToString(append(b, linkMAC(secret, vmID, b)...))
}

// readLink returns the link of a token that was signed for this VM.
func readLink(secret []byte, vmID, token string) (link, bool) {
	var b [linkBytes]byte
	if len(token) != base64.RawURLEncoding.EncodedLen(linkBytes) {
		return link{}, false
	}
	if n, err := base64.RawURLEncoding.Strict().Decode(b[:], []byte(token)); err != nil || n != linkBytes {
		return link{}, false
	}
	head, mac := b[:linkHead], b[linkHead:]
	if !hmac.Equal(mac, linkMAC(secret, vmID, head)) {
		return link{}, false
	}
	return link{
		kind:       head[0],
		until:      time.Unix(int64(binary.BigEndian.Uint64(head[1:])), 0).UTC(),
		port:       int(binary.BigEndian.Uint16(head[9:])),
		generation: int64(binary.BigEndian.Uint64(head[11:])),
	}, true
}

func linkMAC(secret []byte, vmID string, head []byte) []byte {
	m := hmac.New(sha256.New, secret)
	_, _ = m.Write([]byte(linkText + vmID + "\x00"))
	_, _ = m.Write(head)
	return m.Sum(nil)
}
