package vmm

import (
	"fmt"
	"os"
	"syscall"
)

// BaseName is the name of every memfd that is a Spec.Base. A later daemon finds
// the base in the mappings of an adopted machine by it.
const BaseName = "hatch-base"

// Shared is memory that machines share: one Spec.Base.
type Shared struct {
	Inode uint64 `json:"inode"` // identifies it until the host reboots
	Bytes int64  `json:"bytes"` // of the host's RAM
}

// SharedOf describes a Spec.Base. It uses package syscall because os.FileInfo does,
// and because this package imports no other module (internal/arch): the drivers use
// golang.org/x/sys/unix.
func SharedOf(base *os.File) (Shared, error) {
	info, err := base.Stat()
	if err != nil {
		return Shared{}, fmt.Errorf("cannot stat the base: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return Shared{}, fmt.Errorf("cannot stat the base: %s has no inode", base.Name())
	}
	return Shared{Inode: st.Ino, Bytes: st.Blocks * 512}, nil
}
