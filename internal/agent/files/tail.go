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
	path, err := checked(args.Path)
	if err != nil {
		return err
	}
	file, st, err := openRegular(path)
	if err != nil {
		return refusal(err)
	}
	t := &follower{path: path, file: file, out: w}
	defer t.close()
	if args.Follow {
		if err := t.listen(); err != nil {
			return refusal(err)
		}
	}
	if err := began(); err != nil {
		return err
	}
	if !madeUp(int(file.Fd())) {
		if err := seekLines(file, st.Size, args.Lines); err != nil {
			return refusal(err)
		}
	}
	if args.Follow {
		return refusal(t.follow(ctx))
	}
	_, err = w.ReadFrom(file)
	return refusal(err)
}

// seekLines puts the file's position at the beginning of its last lines. It
// reads the file from behind.
func seekLines(file *os.File, size, lines int64) error {
	at := size
	if lines < 0 {
		at = 0
	}
	buf := make([]byte, copyBuffer)
	for at > 0 {
		part := buf[:min(at, int64(len(buf)))]
		if _, err := file.ReadAt(part, at-int64(len(part))); errors.Is(err, io.EOF) {
			at = 0 // it has got shorter
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

// lastLines returns where the last lines of a text begin, and how many there
// are to be found in front of it; -1 when that was all. A line end at the end of
// the whole text begins no line.
func lastLines(text []byte, lines int64, whole bool) (from int, left int64) {
	if lines == 0 {
		return len(text), -1
	}
	end := len(text)
	if whole && text[end-1] == '\n' {
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

// follower follows a text that grows.
type follower struct {
	path   string
	file   *os.File
	out    wire.FileWriter
	events *inotify
	watch  int32 // of the file
}

func (t *follower) close() {
	_ = t.file.Close()
	if t.events != nil {
		t.events.close()
	}
}

// listen makes sure that what happens to the file from now on is heard of: in
// itself, and at its path, where another one may come.
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

// follow sends what there is and what comes.
func (t *follower) follow(ctx context.Context) error {
	stop := context.AfterFunc(ctx, t.events.wake)
	defer stop()
	for {
		if err := t.send(); err != nil {
			return err
		}
		again, err := t.next()
		if err != nil {
			return err
		}
		if again {
			continue
		}
		events, err := t.events.read(time.Time{}, ctx.Err)
		if err != nil {
			return err
		}
		for _, e := range events {
			if e.mask&(unix.IN_DELETE_SELF|unix.IN_MOVE_SELF) != 0 && e.wd != t.watch {
				return wire.Refuse(wire.CodeNotFound, "the directory of the file is not there any more")
			}
		}
	}
}

// send sends up to the end of the file. One that is shorter than what was sent
// has been emptied, and begins anew.
func (t *follower) send() error {
	at, err := t.file.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	st, err := t.file.Stat()
	if err != nil {
		return err
	}
	if st.Size() < at && !madeUp(int(t.file.Fd())) {
		if _, err := t.file.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
	if _, err := t.out.ReadFrom(t.file); err != nil {
		return err
	}
	return t.out.Flush()
}

// next turns to the file that has taken the place of the present one, if one
// has, and reports whether there may be more to send.
func (t *follower) next() (bool, error) {
	file, st, err := openRegular(t.path)
	if err != nil {
		return false, nil // it may come, or come back
	}
	var present unix.Stat_t
	if err := unix.Fstat(int(t.file.Fd()), &present); err != nil || st.Dev == present.Dev && st.Ino == present.Ino {
		_ = file.Close()
		return false, err
	}
	if err := t.send(); err != nil { // what was written before it lost its place
		_ = file.Close()
		return false, err
	}
	t.events.remove(t.watch)
	_ = t.file.Close()
	t.file = file
	return true, t.listenToFile()
}
