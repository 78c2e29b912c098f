// Package cp copies files and trees between this machine and a VM, by the rules
// of docker cp.
//
// A VM is not trusted: nothing is written outside the destination, and devices,
// setuid bits and links out of the tree are dropped. The package prints nothing
// and parses no arguments; hatch cp does. Start at [Copy].
package cp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"sync/atomic"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// Stream as a path on this machine is stdin or stdout.
const Stream = "-"

// ErrTerminal is the error of a tree that would be printed on a terminal.
var ErrTerminal = errors.New("an archive is not for a terminal")

// OutsideError is the error of a single link whose target is not copied.
type OutsideError struct {
	Target string
}

// Error returns the sentence.
func (e *OutsideError) Error() string {
	return fmt.Sprintf("it is a link to %s, which is outside of what is copied", e.Target)
}

// Copy is one copy, made by one call of Get or Put.
type Copy struct {
	Client *client.Client
	VM     string // id

	KeepAll     bool // owners, setuid bits, extended attributes and links out of the tree
	FollowLinks bool // copy the target of a link that is the source

	Stdin            io.Reader
	Stdout           io.Writer
	StdoutIsTerminal bool

	Progress Progress
	Skipped  Skipped
}

// Progress counts bytes. It is safe for concurrent use.
type Progress struct {
	moved, total atomic.Int64
}

// Moved returns the number of bytes copied so far.
func (p *Progress) Moved() int64 { return p.moved.Load() }

// Total returns the number of bytes to copy, or 0 if it is not known.
func (p *Progress) Total() int64 { return p.total.Load() }

// Write counts the bytes of b.
func (p *Progress) Write(b []byte) (int, error) {
	p.moved.Add(int64(len(b)))
	return len(b), nil
}

// counted returns a reader of r that updates the progress.
func (c *Copy) counted(r io.Reader) io.Reader { return io.TeeReader(r, &c.Progress) }

// Skipped lists files of a tree that were not copied.
type Skipped struct {
	Files []SkippedFile // the first maxSkipped
	More  int           // how many are not in Files
}

// SkippedFile is one file that was not copied. Name may come from the VM.
type SkippedFile struct {
	Name, Reason string
}

const maxSkipped = 20

func (s *Skipped) add(name, reason string) {
	if len(s.Files) == maxSkipped {
		s.More++
		return
	}
	s.Files = append(s.Files, SkippedFile{path.Clean(name), reason})
}

const notCopied = "it is a device, socket or pipe"

const maxLinks = 40 // as in Linux

// resolve follows links from p in the VM and describes the file at their end.
func (c *Copy) resolve(ctx context.Context, p string) (api.File, error) {
	for range maxLinks {
		f, err := c.Client.StatFile(ctx, c.VM, p)
		if err != nil || f.Kind != api.FileSymlink {
			return f, err
		}
		target := client.TargetOf(f)
		if !strings.HasPrefix(target, "/") {
			dir, _ := split(p)
			target = dir + target
		}
		p = target
	}
	return api.File{}, fmt.Errorf("%s: there are too many links", p)
}

// split returns the directory of a path in the VM, with its slash, and the last
// element. The path is not cleaned: if a is a link, a/../b is not b.
func split(p string) (dir, name string) {
	p = strings.TrimRight(p, "/")
	at := strings.LastIndexByte(p, '/') + 1
	return p[:at], p[at:]
}

// isContents reports whether a path means the contents of a directory.
func isContents(p string) bool { return p == "." || strings.HasSuffix(p, "/.") }
