package secret_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/hatchvm/hatch/internal/secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestValuesAreOpenedAtTheirPlaceOnly(t *testing.T) {
	keys := secret.NewKeyring(secret.NewKey())
	for _, value := range [][]byte{nil, []byte("a"), bytes.Repeat([]byte{0, 255}, 1<<19)} {
		sealed := keys.Seal("vms/user_data/vm_a", value)
		got, err := keys.Open("vms/user_data/vm_a", sealed)
		if err != nil || !bytes.Equal(got, value) {
			t.Fatalf("%d bytes: %v", len(value), err)
		}
		if len(value) == 0 {
			continue
		}
		if len(value) > 4 && bytes.Contains(sealed, value[:4]) {
			t.Error("the value is not encrypted")
		}
		if _, err := keys.Open("vms/user_data/vm_b", sealed); !errors.Is(err, secret.ErrNotOpened) {
			t.Errorf("in another row: %v", err)
		}
		if _, err := secret.NewKeyring(secret.NewKey()).Open("vms/user_data/vm_a", sealed); !errors.Is(err, secret.ErrNotOpened) {
			t.Errorf("without its key: %v", err)
		}
	}
}

func TestChangedValuesAreRefused(t *testing.T) {
	keys := secret.NewKeyring(secret.NewKey())
	sealed := keys.Seal("p", []byte("value"))
	for i := range sealed {
		changed := bytes.Clone(sealed)
		changed[i] ^= 1
		if _, err := keys.Open("p", changed); !errors.Is(err, secret.ErrNotOpened) {
			t.Errorf("byte %d: %v", i, err)
		}
		if _, err := keys.Open("p", sealed[:i]); i > 0 && !errors.Is(err, secret.ErrNotOpened) {
			t.Errorf("the first %d bytes: %v", i, err)
		}
	}
}

func TestResealChangesTheKey(t *testing.T) {
	older, newer := secret.NewKey(), secret.NewKey()
	sealed := secret.NewKeyring(older).Seal("p", []byte("value"))
	both := secret.NewKeyring(newer, older)
	again, changed, err := both.Reseal("p", sealed)
	if err != nil || !changed {
		t.Fatalf("changed %v, %v", changed, err)
	}
	if got, err := secret.NewKeyring(newer).Open("p", again); err != nil || string(got) != "value" {
		t.Errorf("with the new key alone: %q, %v", got, err)
	}
	if _, changed, err := both.Reseal("p", again); changed || err != nil {
		t.Errorf("a second time: changed %v, %v", changed, err)
	}
}

func TestKeysAreUnwrappedByTheirIdentity(t *testing.T) {
	a, b := identities(t), identities(t)
	k := secret.NewKey()
	wrapped, err := a.Wrap(k)
	if err != nil {
		t.Fatal(err)
	}
	read, err := secret.ParseIdentities(append(b, a...).Text()) // as a key file has them
	if err != nil || len(read) != 2 {
		t.Fatalf("%d identities, %v", len(read), err)
	}
	if got, err := read.Unwrap(wrapped); err != nil || got != k {
		t.Errorf("unwrapped: %v", err)
	}
	if _, err := b.Unwrap(wrapped); err == nil {
		t.Error("another identity unwraps it")
	}
	wrapped.ID = secret.NewKey().ID()
	if _, err := a.Unwrap(wrapped); err == nil {
		t.Error("a key with the id of another is accepted")
	}
}

func TestInvalidKeyFilesAreRefusedWithoutTheirText(t *testing.T) {
	good := string(identities(t).Text())
	private := good[strings.Index(good, "AGE-SECRET"):]
	for name, text := range map[string]string{
		"empty": "", "only comments": "# x\n", "half": private[:40], "changed": strings.Replace(private, private[30:34], "qqqq", 1), "too long": strings.Repeat("#\n", secret.MaxKeyFile),
	} {
		_, err := secret.ParseIdentities([]byte(text))
		if err == nil || strings.Contains(err.Error(), "AGE-SECRET-KEY-1") && !strings.Contains(err.Error(), "AGE-SECRET-KEY-1…") || strings.Contains(err.Error(), private[20:30]) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Only a rotation's own identity goes at its end.
func TestRotationKeepsIdentitiesOfOthers(t *testing.T) {
	before := append(identities(t), identities(t)...)
	rotated, err := before.Rotated()
	if err != nil {
		t.Fatal(err)
	}
	read, err := secret.ParseIdentities(rotated.Text())
	if err != nil || before.Rotating() || !read.Rotating() || len(read) != 3 {
		t.Fatalf("%d identities, %v", len(read), err)
	}
	kept := read.Kept()
	if len(kept) != 2 || kept[0].String() != rotated[0].String() || kept[1].String() != before[1].String() || kept.Rotating() {
		t.Errorf("kept: %d", len(kept))
	}
}

func identities(t *testing.T) secret.Identities {
	t.Helper()
	made, err := secret.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return secret.Identities{made}
}

func FuzzOpen(f *testing.F) {
	keys := secret.NewKeyring(secret.NewKey())
	f.Add([]byte{})
	f.Add(keys.Seal("elsewhere", []byte("value")))
	f.Fuzz(func(t *testing.T, sealed []byte) {
		if got, err := keys.Open("p", sealed); err == nil && len(sealed) > 0 {
			t.Errorf("opened %q", got)
		}
	})
}

func FuzzParseIdentities(f *testing.F) {
	f.Add([]byte("# a\nAGE-SECRET-KEY-1\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		ids, err := secret.ParseIdentities(text)
		if err != nil {
			return
		}
		if again, err := secret.ParseIdentities(ids.Text()); err != nil || len(again) != len(ids) {
			t.Errorf("not read as written: %v", err)
		}
	})
}

func BenchmarkOpen(b *testing.B) {
	keys := secret.NewKeyring(secret.NewKey())
	sealed := keys.Seal("p", make([]byte, 4096))
	for b.Loop() {
		if _, err := keys.Open("p", sealed); err != nil {
			b.Fatal(err)
		}
	}
}
