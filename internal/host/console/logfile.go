package console

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// logFile is a log in two files of bounded size: when the newer is full it
// becomes the older one. Beside each lie its times, without which it goes on: the output
// counts for more.
type logFile struct {
	dir      string
	maxBytes int64 // of each file
	file     *os.File
	size     int64
	times    *times      // nil: they cannot be opened
	untimed  func(error) // is told of each error of the times
	within   bool        // its last line is not complete
}

func openLog(dir string, maxBytes int64, untimed func(error)) (*logFile, error) {
	f, err := os.OpenFile(filepath.Join(dir, logName), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open the console log: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot open the console log: %w", err), f.Close())
	}
	l := &logFile{dir: dir, maxBytes: maxBytes, file: f, size: st.Size(), untimed: untimed}
	if l.times, err = openTimes(f.Name()+timesSuffix, st); err != nil {
		untimed(err)
	}
	last := make([]byte, 1)
	_, err = f.ReadAt(last, st.Size()-1)
	l.within = err == nil && last[0] != '\n'
	return l, nil
}

// write appends text that came at some time, which is kept if a line begins in text.
func (l *logFile) write(text []byte, at time.Time) error {
	if l.size+int64(len(text)) > l.maxBytes && l.size > 0 {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	from := l.size
	n, err := l.file.Write(text)
	l.size += int64(n)
	if n == 0 {
		return err
	}
	begins := !l.within || bytes.IndexByte(text[:n-1], '\n') >= 0
	l.within = text[n-1] != '\n'
	if begins && l.times != nil {
		if err := l.times.note(from, at); err != nil {
			l.untimed(err)
		}
	}
	return err
}

func (l *logFile) rotate() error {
	log, older := filepath.Join(l.dir, logName), filepath.Join(l.dir, oldName)
	if err := os.Rename(log+timesSuffix, older+timesSuffix); err != nil {
		_ = os.Remove(older + timesSuffix) // those of a log that is replaced now, whose inode a later one may get
		if ignoreMissing(err) != nil {
			l.untimed(err)
		}
	}
	if err := ignoreMissing(os.Rename(log, older)); err != nil {
		return err
	}
	next, err := openLog(l.dir, l.maxBytes, l.untimed)
	if err != nil {
		return err
	}
	err = l.close()
	next.within = l.within // a line may begin in the older file
	*l = *next
	return err
}

func (l *logFile) close() error {
	if l.times != nil {
		if err := l.times.file.Close(); err != nil {
			l.untimed(err)
		}
	}
	return l.file.Close()
}

// history opens the log as it is now; later output is not part of it.
func (l *logFile) history() history { return storedLog(l.dir) }

// history is a log up to one moment: files, each with its size at that moment.
type history struct{ parts []part }

type part struct {
	file  *os.File
	size  int64
	times *os.File // nil: none
}

func (h history) close() {
	for _, part := range h.parts {
		_ = part.file.Close() // again after writeTail: harmless
		if part.times != nil {
			_ = part.times.Close()
		}
	}
}

// storedLog opens the log of a closed console.
func storedLog(dir string) history {
	var stored history
	for _, name := range []string{oldName, logName} {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			continue // never written
		}
		p := part{file: f}
		if st, err := f.Stat(); err == nil {
			p.size = st.Size()
		}
		if p.times, err = os.Open(f.Name() + timesSuffix); err != nil {
			p.times = nil // an older hatchd has written the log
		}
		stored.parts = append(stored.parts, p)
	}
	return stored
}

// read returns the log, at most twice the size of a log file, and when it came.
func (h history) read() ([]byte, []moment, error) {
	var text []byte
	var moments []moment
	for _, part := range h.parts {
		before := int64(len(text))
		more, err := io.ReadAll(io.NewSectionReader(part.file, 0, part.size))
		if err != nil {
			return nil, nil, fmt.Errorf("cannot read the console log: %w", err)
		}
		text = append(text, more...)
		moments = append(moments, moment{before, time.Time{}})
		if st, err := part.file.Stat(); err == nil && part.times != nil {
			for _, m := range readTimes(part.times, st) {
				moments = append(moments, moment{before + m.from, m.at})
			}
		}
	}
	return text, moments, nil
}

// writeTail writes the last tail lines of h, of those that out does not leave out, or
// all of them when tail is negative, and closes h. An unfinished line counts as one.
func writeTail(out *lines, h history, tail int) error {
	defer h.close()
	text, moments, err := h.read()
	if err != nil {
		return err
	}
	from := since(text, moments, out.since)
	from = len(text) - len(lastLines(text[from:], tail))
	for i, m := range moments {
		end := int64(len(text))
		if i+1 < len(moments) {
			end = min(end, moments[i+1].from)
		}
		if begin := max(m.from, int64(from)); begin < end {
			if err := out.write(text[begin:end], m.at); err != nil {
				return err
			}
		}
	}
	if from == len(text) { // what follows may be the rest of a line that is not shown
		out.within = from > 0 && text[from-1] != '\n'
		out.shown = out.since.IsZero()
	}
	return nil
}

// since returns where the first line begins that came at a time or later.
func since(text []byte, moments []moment, at time.Time) int {
	if at.IsZero() {
		return 0
	}
	for _, m := range moments {
		if m.at.Before(at) || m.from >= int64(len(text)) {
			continue
		}
		if m.from == 0 || text[m.from-1] == '\n' {
			return int(m.from)
		}
		if end := bytes.IndexByte(text[m.from:], '\n'); end >= 0 {
			return int(m.from) + end + 1
		}
	}
	return len(text)
}

func lastLines(text []byte, tail int) []byte {
	if tail < 0 {
		return text
	}
	from := len(text)
	end := len(bytes.TrimSuffix(text, []byte("\n")))
	for range tail {
		if end < 0 {
			return text
		}
		end = bytes.LastIndexByte(text[:end], '\n')
		from = end + 1
	}
	return text[from:]
}
