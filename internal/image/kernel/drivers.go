package kernel

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"path"
	"strings"
)

// Driver names a part of the kernel, as the different witnesses know it.
type Driver struct {
	Module string // as lsmod shows it: with underscores, such as virtio_blk
	Config string // the option without CONFIG_, such as VIRTIO_BLK; "" when it has none
}

// Answer says whether a driver is in the kernel itself.
type Answer int

// The answers.
const (
	Unknown Answer = iota // no witness can tell
	Yes
	No
)

// Witness tells what is built into a kernel. The zero Witness knows nothing.
// The fields are asked in order: what the build wrote down is exact.
type Witness struct {
	Config  Config          // nil when there is none
	Modules map[string]bool // built-in modules by name, from modules.builtin; nil when there is none
	Vmlinux []byte          // the bare kernel, to look for names in; nil when it was not unpacked
}

// Builtin says whether a driver is built in.
//
// With neither a configuration nor a list of built-in modules, it looks for the
// driver's texts in the kernel: what it prints, or the name it registers under.
// That is a guess both ways. A kernel that only mentions the name gives a wrong
// Yes, whose guest then stops in the initramfs with a message; a driver under
// another name gives a wrong No, which a modules directory or a configuration
// beside the kernel overrules.
func (w Witness) Builtin(d Driver) Answer {
	switch {
	case w.Config != nil && d.Config != "":
		return answer(w.Config[d.Config] == "y")
	case w.Modules != nil:
		return answer(w.Modules[d.Module])
	case w.Vmlinux != nil:
		return answer(mentions(w.Vmlinux, d.Module))
	}
	return Unknown
}

func answer(yes bool) Answer {
	if yes {
		return Yes
	}
	return No
}

// marks are texts that only the driver itself brings into a kernel, where its
// name alone would be found elsewhere, or nowhere.
var marks = map[string]string{
	"overlay":     "overlayfs: ",
	"ext4":        "EXT4-fs (",
	"squashfs":    "SQUASHFS error",
	"erofs":       "erofs: ",
	"xfs":         "XFS (",
	"btrfs":       "BTRFS ",
	"isofs":       "ISO 9660 Extensions",
	"virtio_ring": "virtio\x00", // has no name of its own; it comes with the bus
}

// mentions reports whether the kernel holds the driver's mark, else its name as
// the end of a text. The beginning of a name cannot be asked for: linkers store
// a text that is the end of another, such as tmpfs of devtmpfs, only once.
func mentions(vmlinux []byte, module string) bool {
	if mark, ok := marks[module]; ok {
		return bytes.Contains(vmlinux, []byte(mark))
	}
	return bytes.Contains(vmlinux, []byte(module+"\x00")) ||
		bytes.Contains(vmlinux, []byte(strings.ReplaceAll(module, "_", "-")+"\x00"))
}

// maxModuleList bounds modules.builtin in bytes; those of distributions have 20 KiB.
const maxModuleList = 4 << 20

// ParseBuiltin reads modules.builtin: one path of a module a line.
func ParseBuiltin(r io.Reader) (map[string]bool, error) {
	limited := &io.LimitedReader{R: r, N: maxModuleList + 1}
	names := map[string]bool{}
	lines := bufio.NewScanner(limited)
	for lines.Scan() {
		if name := ModuleName(lines.Text()); name != "" {
			names[name] = true
		}
	}
	if lines.Err() != nil {
		return nil, fmt.Errorf("cannot read the list of built-in modules: %w", lines.Err())
	}
	if limited.N == 0 {
		return nil, fmt.Errorf("cannot read the list of built-in modules: it has more than %d MiB", maxModuleList>>20)
	}
	return names, nil
}

// ModuleName returns the name of the module in a file such as
// kernel/fs/ext4/ext4.ko.xz, or "" for other files.
func ModuleName(file string) string {
	name, rest, found := strings.Cut(path.Base(file), ".ko")
	if !found || rest != "" && rest != ".xz" && rest != ".zst" && rest != ".gz" {
		return ""
	}
	return strings.ReplaceAll(name, "-", "_")
}
