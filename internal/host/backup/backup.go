//go:build linux

// Package backup writes and reads archives of a data directory: one tar file,
// compressed with zstd, with a checksum of each file at its end.
//
// It knows files, and not what they mean: internal/daemon chooses them, and makes the
// database in the archive agree with them. An archive that is damaged, cut short, or of
// a later format is refused; nothing in it is trusted, neither names nor sizes. The
// checksums find damage, not a forger: who can write an archive can write those, too.
// Start at [Writer] and [Extract].
package backup

import (
	"errors"
	"fmt"
	"path"
	"strings"
	"time"
)

// Format is the format of archives that this package writes, and the newest that it
// reads.
const Format = 1

// Bounds of what an archive may hold.
const (
	maxHead     = 64 << 10
	maxManifest = 64 << 20
	maxFiles    = 1 << 20
	maxName     = 512
)

// The names of the entries that are not files of the data directory.
const (
	headName     = "backup.json"
	manifestName = "manifest.json"
	filesDir     = "data/"
)

// Head is the first entry of an archive.
type Head struct {
	Format    int       `json:"format"`
	Version   string    `json:"version"`  // of hatchd
	DataDir   string    `json:"data_dir"` // whose paths are in the database
	CreatedAt time.Time `json:"created_at"`
	Keys      bool      `json:"keys"`  // the keys are in it
	Disks     bool      `json:"disks"` // disks, saved memory and snapshots are in it
}

// manifest is the last entry.
type manifest struct {
	Files   []File    `json:"files"`
	LeftOut []LeftOut `json:"left_out"`
}

// File is one file of an archive.
type File struct {
	Name   string `json:"name"`   // relative to the data directory
	Size   int64  `json:"size"`   // of the file, in bytes
	Stored int64  `json:"stored"` // in the archive, in bytes
	Sum    string `json:"sum"`    // sha256:HEX of what is stored
}

// LeftOut is what is not in an archive though the data directory has it.
type LeftOut struct {
	What string `json:"what"`
	Why  string `json:"why"`
}

// ErrDamaged is the error of an archive that is not as it was written.
var ErrDamaged = errors.New("the archive is damaged or cut short")

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, args...))
}

// checkName refuses a name that is not one of a file below the data directory.
func checkName(name string) error {
	if name == "" || len(name) > maxName || path.Clean(name) != name || path.IsAbs(name) || name == ".." || strings.HasPrefix(name, "../") ||
		strings.ContainsRune(name, 0) || strings.HasPrefix(name, ".") {
		return damaged("it has the name %.100q", name)
	}
	return nil
}

// Of files with holes, the archive has pieces: the offset and the length of each in 8
// bytes, big endian, and its bytes.
const (
	pieceHead  = 16
	sizeRecord = "HATCH.size" // in the tar header of such a file: its size
)
