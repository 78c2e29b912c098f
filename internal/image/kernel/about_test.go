package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
)

func note(name string, kind uint32, value string) []byte {
	var n []byte
	n = binary.LittleEndian.AppendUint32(n, uint32(len(name)))
	n = binary.LittleEndian.AppendUint32(n, uint32(len(value)))
	n = binary.LittleEndian.AppendUint32(n, kind)
	pad := func(s string) []byte { return append([]byte(s), make([]byte, (4-len(s)%4)%4)...) }
	return append(append(n, pad(name)...), pad(value)...)
}

// withNotes returns a vmlinux with one segment of notes.
func withNotes(notes []byte) []byte {
	const table = 64
	content := append(make([]byte, 56), "Linux version 6.1.0 (x)\x00"...)
	at := uint64(table + len(content))
	binary.LittleEndian.PutUint32(content, 4) // PT_NOTE
	binary.LittleEndian.PutUint64(content[8:], at)
	binary.LittleEndian.PutUint64(content[32:], uint64(len(notes)))
	file := append(vmlinux(string(content)), notes...)
	binary.LittleEndian.PutUint64(file[32:], table)
	binary.LittleEndian.PutUint16(file[54:], 56)
	binary.LittleEndian.PutUint16(file[56:], 1)
	return file
}

func TestPVHIsFoundByItsNote(t *testing.T) {
	gnu, pvh := note("GNU\x00", 3, "build id"), note("Xen\x00", 18, "\x00\x00\x00\x01")
	other := note("Xen\x00", 17, "xyz")
	for name, c := range map[string]struct {
		notes []byte
		want  bool
	}{
		"alone":         {pvh, true},
		"behind others": {append(append(append([]byte{}, gnu...), other...), pvh...), true},
		"other notes":   {append(append([]byte{}, gnu...), other...), false},
		"none":          {nil, false},
		"cut off":       {pvh[:13], false},
		"huge name":     {append([]byte("\xff\xff\xff\xff\xff\xff\xff\xff"), pvh...), false},
	} {
		if got := read(t, withNotes(c.notes)).PVH(); got != c.want {
			t.Errorf("%s: got %v", name, got)
		}
	}
	if read(t, bzImage(gzipped(vmlinux("x")))).PVH() {
		t.Error("a bzImage has an ELF note")
	}
}

func Test32BitKernelsAreRefused(t *testing.T) {
	file := bzImage(gzipped(vmlinux("x")))
	binary.LittleEndian.PutUint16(file[atXLoadFlags:], 0)
	if _, err := Read(bytes.NewReader(file), int64(len(file))); !errors.Is(err, ErrNoKernel) || !strings.Contains(err.Error(), "32-bit") {
		t.Errorf("got %v", err)
	}
	binary.LittleEndian.PutUint16(file[atProtocol:], 0x020b) // too old to have the flag
	read(t, file)
}

func TestHintNamesTheMistake(t *testing.T) {
	arm := append(make([]byte, 0x38), "ARM\x64"...)
	for says, file := range map[string]string{
		"arm64":             string(arm),
		"unified kernel":    "MZ" + strings.Repeat("\x00", 600),
		"compressed EFI":    "MZ\x00\x00zimg",
		"compressed file":   "\x1f\x8b\x08",
		"32-bit":            "\x7fELF\x01",
		"/boot/vmlinuz-VER": "#!/bin/sh",
		"archive":           "070701",
	} {
		if got := Hint(strings.NewReader(file)); !strings.Contains(got, says) {
			t.Errorf("got %q; want %q", got, says)
		}
	}
}

func TestModuleVersion(t *testing.T) {
	module := vmlinux("x\x00vermagic=" + someVersion + " SMP preempt mod_unload \x00")
	for name, content := range map[string][]byte{
		"bare": module, "gzip": gzipped(module), "xz": xzipped(t, module),
	} {
		if got, err := ModuleVersion(content); err != nil || got != someVersion {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
	if got, err := ModuleVersion(vmlinux("no magic")); got != "" || err != nil {
		t.Errorf("got %q, %v for a module without a version", got, err)
	}
	for name, content := range map[string][]byte{
		"a text": []byte("hello"), "damaged": gzipped(module)[:40], "too large": gzipped(make([]byte, MaxModule+1)),
	} {
		if got, err := ModuleVersion(content); err == nil {
			t.Errorf("%s: got %q and no error", name, got)
		}
	}
}

func FuzzAbout(f *testing.F) {
	f.Add(withNotes(note("Xen\x00", 18, "\x00\x00\x00\x01")))
	f.Add(gzipped([]byte("vermagic=6.1 ")))
	f.Fuzz(func(t *testing.T, file []byte) {
		k := &Kernel{Format: ELF, file: bytes.NewReader(file), size: int64(len(file))}
		_ = k.PVH()
		_ = hasNote(file, "Xen\x00", notePVH)
		if Hint(bytes.NewReader(file)) == "" {
			t.Error("no hint")
		}
		if v, err := ModuleVersion(file); err != nil && v != "" {
			t.Errorf("got %q and %v", v, err)
		}
	})
}
