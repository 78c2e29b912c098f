package vmm

import (
	"fmt"
	"os"
	"syscall"
)

// BaseName is the name of each memfd that is a Spec.Base. By it a later daemon
// recognises the memory of a machine that it adopts.
const BaseName = "hatch-base"

// Shared is memory that machines share: a Spec.Base, whoever has it.
type Shared struct {
	Inode uint64 `json:"inode"` // tells it from others, as long as the host is up
	Bytes int64  `json:"bytes"` // what it takes of the host's RAM
}

// SharedOf describes a Spec.Base.
func SharedOf(base *os.File) (Shared, error) {
	info, err := base.Stat()
	if err != nil {
		return Shared{}, fmt.Errorf("cannot look at memory: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return Shared{}, fmt.Errorf("cannot tell what %s takes", base.Name())
	}
	return Shared{Inode: st.Ino, Bytes: st.Blocks * 512}, nil
}
