package console

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
)

// timesSuffix follows a log's name in that of its times: a file of records, each the
// place of some output in the log and when it came. Guests decide how short lines are,
// so their number is bounded: of a guest whose lines are very short, only some have
// their own time, and the others that of one before.
const (
	timesSuffix = ".times"
	recordSize  = 16
	firstTimes  = 1024 // records that a log may have in any case
	bytesOfTime = 64   // of a log, for each further record
)

// times are the times of one log that is being written.
type times struct {
	file    *os.File
	records int64 // the first of which names the log
}

// moment is when output came: that from a place of a log on, to the next moment.
type moment struct {
	from int64 // bytes
	at   time.Time
}

// openTimes opens the times of a log. Those of another log, as after a crash between the
// renames of the two, are dropped, and so are those of output that is not in the log.
func openTimes(name string, log os.FileInfo) (*times, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open the times of the console log: %w", err)
	}
	t := &times{file: f}
	stored := readTimes(f, log)
	if stored != nil {
		t.records = 1 + int64(len(stored))
	}
	err = f.Truncate(t.records * recordSize)
	if err == nil && stored == nil {
		err = t.write(int64(inode(log)), 0) //nolint:gosec // only compared
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return t, nil
}

func inode(f os.FileInfo) uint64 {
	st, ok := f.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	return st.Ino
}

// note records when the output from a place of the log on came.
func (t *times) note(from int64, at time.Time) error {
	if t.records > firstTimes+from/bytesOfTime {
		return nil
	}
	return t.write(from, at.UnixMilli())
}

// write writes the next record, over one that a full disk has left incomplete.
func (t *times) write(a, b int64) error {
	record := binary.LittleEndian.AppendUint64(nil, uint64(a))   //nolint:gosec // as it is
	record = binary.LittleEndian.AppendUint64(record, uint64(b)) //nolint:gosec // as it is
	if _, err := t.file.WriteAt(record, t.records*recordSize); err != nil {
		return fmt.Errorf("cannot write the times of the console log: %w", err)
	}
	t.records++
	return nil
}

// readTimes reads the times of a log. They are nil if the file is not about this log.
func readTimes(f io.ReaderAt, log os.FileInfo) []moment {
	most := (2 + firstTimes + log.Size()/bytesOfTime) * recordSize
	text, err := io.ReadAll(io.NewSectionReader(f, 0, most))
	if err != nil {
		return nil
	}
	return parseTimes(text, inode(log), log.Size())
}

// parseTimes returns the moments of text, if it is about the log with this inode, up to
// the first that cannot be right.
func parseTimes(text []byte, inode uint64, logSize int64) []moment {
	if len(text) < recordSize || binary.LittleEndian.Uint64(text) != inode {
		return nil
	}
	moments := []moment{}
	last := int64(-1)
	for text = text[recordSize:]; len(text) >= recordSize; text = text[recordSize:] {
		from := int64(binary.LittleEndian.Uint64(text))   //nolint:gosec // checked below
		at := int64(binary.LittleEndian.Uint64(text[8:])) //nolint:gosec // any is a time
		if from <= last || from >= logSize {
			break
		}
		moments = append(moments, moment{from, time.UnixMilli(at)})
		last = from
	}
	return moments
}

// stamp is RFC 3339 with milliseconds, as in the API.
const stamp = "2006-01-02T15:04:05.000Z"

// noStamp stands for the time of a line that came before times were recorded.
const noStamp = "-"

// lines is a writer of output with its times. Without since and stamps it changes
// nothing.
type lines struct {
	to     io.Writer
	since  time.Time // lines that began earlier are left out
	stamps bool      // before each line

	within bool // a line that has begun
	shown  bool // it is not left out
}

const maxStamped = 32 << 10 // bytes that are written at once

// write writes output that came at one time, zero for an unknown one.
func (l *lines) write(text []byte, at time.Time) error {
	if l.since.IsZero() && !l.stamps {
		_, err := l.to.Write(text)
		return err
	}
	var out []byte
	for len(text) > 0 {
		if !l.within {
			l.shown = !at.Before(l.since)
			if l.shown && l.stamps {
				out = append(append(out, stampOf(at)...), ' ')
			}
		}
		end := bytes.IndexByte(text, '\n') + 1
		if l.within = end == 0; l.within {
			end = len(text)
		}
		if l.shown {
			out = append(out, text[:end]...)
		}
		text = text[end:]
		if len(out) >= maxStamped || len(out) > 0 && len(text) == 0 {
			if _, err := l.to.Write(out); err != nil {
				return err
			}
			out = out[:0]
		}
	}
	return nil
}

func stampOf(at time.Time) string {
	if at.IsZero() {
		return noStamp
	}
	return at.UTC().Format(stamp)
}
