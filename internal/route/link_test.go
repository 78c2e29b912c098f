package route

import (
	"bytes"
	"encoding/base64"
	"testing"
	"time"
)

var linkSecret = bytes.Repeat([]byte{7}, 32)

func TestALinkIsReadAsSigned(t *testing.T) {
	want := link{linkKind, time.Unix(1_800_000_000, 0).UTC(), 65535, 3}
	token := want.sign(linkSecret, "vm_a")
	if got, ok := readLink(linkSecret, "vm_a", token); !ok || got != want {
		t.Errorf("%+v, %v, want %+v", got, ok, want)
	}
	if _, ok := readLink(linkSecret, "vm_b", token); ok {
		t.Error("a link is accepted for another VM")
	}
	if _, ok := readLink(bytes.Repeat([]byte{8}, 32), "vm_a", token); ok {
		t.Error("a link is accepted with another secret")
	}
}

func TestAChangedTokenIsRefused(t *testing.T) {
	token := link{linkKind, time.Unix(1_800_000_000, 0), 80, 0}.sign(linkSecret, "vm_a")
	raw, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		t.Fatal(err)
	}
	for i := range raw {
		changed := bytes.Clone(raw)
		changed[i] ^= 1
		if _, ok := readLink(linkSecret, "vm_a", base64.RawURLEncoding.EncodeToString(changed)); ok {
			t.Errorf("a token with a changed byte %d is accepted", i)
		}
	}
}

func FuzzReadLink(f *testing.F) {
	f.Add(link{linkKind, time.Unix(1_800_000_000, 0), 80, 1}.sign(linkSecret, "vm_a"))
	f.Add(link{cookieKind, time.Unix(0, 0), 0, -1}.sign(linkSecret, "vm_a"))
	f.Add("")
	f.Fuzz(func(t *testing.T, token string) {
		if l, ok := readLink(linkSecret, "vm_a", token); ok && l.sign(linkSecret, "vm_a") != token {
			t.Errorf("%q is accepted as %+v, which is signed otherwise", token, l)
		}
	})
}
