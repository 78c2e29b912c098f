package files

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

// TailFile implements wire.FileHandler.
func (f *Files) TailFile(ctx context.Context, args wire.TailFileArgs, began func() error, w wire.FileWriter) error {
	path, err := validPath(args.Path)
	if err != nil {
		return err
	}
	file, st, err := openRegular(path)
	if err != nil {
		return wireError(err)
	}
	t := &follower{path: path, file: file, out: w}
	defer t.close()
	if args.Follow {
		if err := t.listen(); err != nil {
			return wireError(err)
		}
	}
	if err := began(); err != nil {
		return err
	}
	if !isGenerated(int(file.Fd())) {
		if err := seekLines(file, st.Size, args.Lines); err != nil {
			return wireError(err)
		}
	}
	if args.Follow {
		return wireError(t.follow(ctx))
	}
	_, err = w.ReadFrom(file)
	return wireError(err)
}

// seekLines seeks to the beginning of the file's last lines. It reads the file
// backwards.
func seekLines(file *os.File, size, lines int64) error {
	at := size
	if lines < 0 {
		at = 0
	}
	buf := make([]byte, copyBuffer)
	for at > 0 {
		part := buf[:min(at, int64(len(buf)))]
		if _, err := file.ReadAt(part, at-int64(len(part))); errors.Is(err, io.EOF) {
			at = 0 // the file was truncated meanwhile
			break
		} else if err != nil {
			return err
		}
		from, left := lastLines(part, lines, at == size)
		at -= int64(len(part) - from)
		if lines = left; lines < 0 {
			break
		}
	}
	_, err := file.Seek(at, io.SeekStart)
	return err
}

// lastLines returns where the last lines of a part of a file begin, and how many more
// to find before the part, or -1 if the part has all. atEnd means that the part ends the
// file; then a line feed at its end begins no line.
func lastLines(text []byte, lines int64, atEnd bool) (from int, left int64) {
	if lines == 0 {
		return len(text), -1
	}
	end := len(text)
	if atEnd && text[end-1] == '\n' {
		end--
	}
	for {
		at := bytes.LastIndexByte(text[:end], '\n')
		if at < 0 {
			return 0, lines
		}
		if lines--; lines == 0 {
			return at + 1, -1
		}
		end = at
	}
}

// follower follows a file that grows.
type follower struct {
	path   string
	file   *os.File
	out    wire.FileWriter
	events *inotify
	watch  int32 // watch descriptor of the file
}

func (t *follower) close() {
	_ = t.file.Close()
	if t.events != nil {
		t.events.close()
	}
}

// listen watches the file and the directories of its path, where another file may
// replace it.
func (t *follower) listen() error {
	var err error
	if t.events, err = newInotify(); err != nil {
		return err
	}
	above, _ := split(t.path)
	dirs := []string{above}
	if target, err := filepath.EvalSymlinks(t.path); err == nil && target != t.path {
		dirs = append(dirs, filepath.Dir(target))
	}
	for _, dir := range dirs {
		if _, err := t.events.add(dir, unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_ONLYDIR); err != nil {
			return err
		}
	}
	return t.listenToFile()
}

func (t *follower) listenToFile() error {
	var err error
	t.watch, err = t.events.add(fmt.Sprintf("/proc/self/fd/%d", t.file.Fd()), unix.IN_MODIFY)
	return err
}

// follow sends the rest of the file, and then all that is appended.
func (t *follower) follow(ctx context.Context) error {
	stop := context.AfterFunc(ctx, t.events.wake)
	defer stop()
	for {
		if err := t.send(); err != nil {
			return err
		}
		replaced, err := t.next()
		if err != nil {
			return err
		}
		if replaced {
			continue
		}
		events, err := t.events.read(time.Time{}, ctx.Err)
		if err != nil {
			return err
		}
		for _, e := range events {
			if e.mask&(unix.IN_DELETE_SELF|unix.IN_MOVE_SELF) != 0 && e.wd != t.watch {
				return wire.Refuse(wire.CodeNotFound, "the directory of the file was removed or renamed")
			}
		}
	}
}

// send sends the file from its position to its end. If the file was truncated below the
// position, send starts at the beginning.
func (t *follower) send() error {
	at, err := t.file.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	st, err := t.file.Stat()
	if err != nil {
		return err
	}
	if st.Size() < at && !isGenerated(int(t.file.Fd())) {
		if _, err := t.file.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
	if _, err := t.out.ReadFrom(t.file); err != nil {
		return err
	}
	return t.out.Flush()
}

// next opens another file that has replaced the current one at the path, and reports
// whether there was one.
func (t *follower) next() (bool, error) {
	file, st, err := openRegular(t.path)
	if err != nil {
		return false, nil // a new file may appear later
	}
	var current unix.Stat_t
	if err := unix.Fstat(int(t.file.Fd()), &current); err != nil || st.Dev == current.Dev && st.Ino == current.Ino {
		_ = file.Close()
		return false, err
	}
	if err := t.send(); err != nil { // bytes appended before it was replaced
		_ = file.Close()
		return false, err
	}
	t.events.remove(t.watch)
	_ = t.file.Close()
	t.file = file
	return true, t.listenToFile()
}
