package console

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// logFile is a log in two files of bounded size: when the newer is full it
// becomes the older one.
type logFile struct {
	dir      string
	maxBytes int64 // of each file
	file     *os.File
	size     int64
}

func openLog(dir string, maxBytes int64) (*logFile, error) {
	f, err := os.OpenFile(filepath.Join(dir, logName), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open the console log: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot open the console log: %w", err), f.Close())
	}
	return &logFile{dir: dir, maxBytes: maxBytes, file: f, size: st.Size()}, nil
}

func (l *logFile) write(text []byte) error {
	if l.size+int64(len(text)) > l.maxBytes && l.size > 0 {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	n, err := l.file.Write(text)
	l.size += int64(n)
	return err
}

func (l *logFile) rotate() error {
	if err := os.Rename(filepath.Join(l.dir, logName), filepath.Join(l.dir, oldName)); ignoreMissing(err) != nil {
		return err
	}
	next, err := openLog(l.dir, l.maxBytes)
	if err != nil {
		return err
	}
	err = l.file.Close()
	l.file, l.size = next.file, next.size
	return err
}

func (l *logFile) close() error { return l.file.Close() }

// history opens the log as it is now; later output is not part of it.
func (l *logFile) history() history {
	var h history
	if old, err := os.Open(filepath.Join(l.dir, oldName)); err == nil {
		if st, err := old.Stat(); err == nil {
			h.parts = append(h.parts, part{old, st.Size()})
		}
	}
	if now, err := os.Open(filepath.Join(l.dir, logName)); err == nil {
		h.parts = append(h.parts, part{now, l.size})
	}
	return h
}

// history is a log up to one moment: files, each with its size at that moment.
type history struct{ parts []part }

type part struct {
	file *os.File
	size int64
}

func (h history) close() {
	for _, part := range h.parts {
		_ = part.file.Close() // again after writeTail: harmless
	}
}

// writeTail writes the last tail lines of h, or all of them when tail is negative,
// and closes h. An unfinished line counts as one.
func writeTail(w io.Writer, h history, tail int) error {
	defer h.close()
	var text []byte // at most twice the size of a log file
	for _, part := range h.parts {
		more, err := io.ReadAll(io.NewSectionReader(part.file, 0, part.size))
		if err != nil {
			return fmt.Errorf("cannot read the console log: %w", err)
		}
		text = append(text, more...)
	}
	_, err := w.Write(lastLines(text, tail))
	return err
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
