package admission

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/logkey"
)

// How many lines of one kind clients without a key can cause.
const (
	linesPerWindow = 20
	logWindow      = time.Minute
)

// Log writes the lines that clients without a key can cause at will. Of each kind it
// writes the first few of a minute, and the number of the others at its end.
type Log struct {
	to *slog.Logger

	mu    sync.Mutex
	kinds map[string]*lines // by message
}

// lines are those of one kind in the current window.
type lines struct {
	level slog.Level
	count int
	end   *time.Timer
}

// NewLog returns a log that writes to another. Close it.
func NewLog(to *slog.Logger) *Log { return &Log{to: to, kinds: map[string]*lines{}} }

// Refused logs that a client was refused. message is one of a few constants: it is the
// kind of the line.
func (l *Log) Refused(message string, client Client, attrs ...slog.Attr) {
	l.Write(slog.LevelWarn, message, append(attrs, slog.String(logkey.Client, client.String()))...)
}

// Write logs a line; message as in Refused.
func (l *Log) Write(level slog.Level, message string, attrs ...slog.Attr) {
	if l.isAmongFirst(level, message) {
		l.to.LogAttrs(context.Background(), level, message, attrs...)
	}
}

func (l *Log) isAmongFirst(level slog.Level, message string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	kind := l.kinds[message]
	if kind == nil {
		kind = &lines{level: level, end: time.AfterFunc(logWindow, func() { l.endWindow(message) })}
		l.kinds[message] = kind
	}
	kind.count++
	return kind.count <= linesPerWindow
}

// endWindow logs how many lines of a kind were left out.
func (l *Log) endWindow(message string) {
	l.mu.Lock()
	kind := l.kinds[message]
	delete(l.kinds, message)
	l.mu.Unlock()
	if kind != nil && kind.count > linesPerWindow {
		l.to.LogAttrs(context.Background(), kind.level, message+"; more within the last minute", slog.Int("more", kind.count-linesPerWindow))
	}
}

// Close logs the numbers of all lines that were left out.
func (l *Log) Close() {
	l.mu.Lock()
	messages := make([]string, 0, len(l.kinds))
	for message, kind := range l.kinds {
		kind.end.Stop()
		messages = append(messages, message)
	}
	l.mu.Unlock()
	for _, message := range messages {
		l.endWindow(message)
	}
}
