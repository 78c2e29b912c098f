package kernel

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"path"
	"strings"
)

// Driver is a part of the kernel, with its names in the sources of a [Witness].
type Driver struct {
	Module string // as lsmod shows it: with underscores, such as virtio_blk
	Config string // the option without CONFIG_, such as VIRTIO_BLK; "" when it has none
}

// Answer says whether a driver is built into the kernel.
type Answer int

// The answers.
const (
	Unknown Answer = iota // no source says
	Yes
	No
)

// Witness is the sources that say which drivers a kernel has built in. The fields
// are used in order; the first two are exact. The zero Witness says nothing.
type Witness struct {
	Config  Config          // nil when there is none
	Modules map[string]bool // built-in modules by name, from modules.builtin; nil when there is none
	Vmlinux []byte          // the bare kernel, to search for names; nil when it was not decompressed
}

// Builtin says whether a driver is built in.
//
// With neither a configuration nor a list of built-in modules, it searches the
// kernel for the driver's texts: its messages, or its registered name. That is a
// guess. A kernel that only mentions the name gives a wrong Yes: the guest stops in
// the initramfs with a message. A driver with another name gives a wrong No; a
// modules directory or a configuration beside the kernel corrects it.
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

// marks are texts that occur in a kernel only with the driver, for drivers whose
// names occur elsewhere too, or nowhere.
var marks = map[string]string{
	"overlay":     "overlayfs: ",
	"ext4":        "EXT4-fs (",
	"squashfs":    "SQUASHFS error",
	"erofs":       "erofs: ",
	"xfs":         "XFS (",
	"btrfs":       "BTRFS ",
	"isofs":       "ISO 9660 Extensions",
	"virtio_ring": "virtio\x00", // has no name; it is built with the bus
}

// mentions reports whether the kernel contains the driver's mark or, without one,
// its name at the end of a text. The start of the text may differ: linkers store a
// text that ends another, such as tmpfs in devtmpfs, only once.
func mentions(vmlinux []byte, module string) bool {
	if mark, ok := marks[module]; ok {
		return bytes.Contains(vmlinux, []byte(mark))
	}
	return bytes.Contains(vmlinux, []byte(module+"\x00")) ||
		bytes.Contains(vmlinux, []byte(strings.ReplaceAll(module, "_", "-")+"\x00"))
}

// maxModuleList bounds modules.builtin in bytes; distributions' have 20 KiB.
const maxModuleList = 4 << 20

// ParseBuiltin reads modules.builtin: the path of a module per line.
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
