package main

import (
	"fmt"
	"os"

	"github.com/sirupsen/logrus"
)

// logFailure writes err to the file of --log, as runc does: tools look there for
// the reason.
func (g *globals) logFailure(err error) error {
	if err == nil {
		return nil
	}
	if exit, ok := err.(exitError); ok && exit.err == nil {
		return nil // the status is the container's
	}
	return g.writeLog(logrus.ErrorLevel, err.Error())
}

// warn tells of something that was passed over.
func (g *globals) warn(text string) {
	fmt.Fprintf(os.Stderr, "vminitctl: warning: %s\n", text)
	if err := g.writeLog(logrus.WarnLevel, text); err != nil {
		fmt.Fprintf(os.Stderr, "vminitctl: %v\n", err)
	}
}

func (g *globals) writeLog(level logrus.Level, text string) error {
	if g.log == "" {
		return nil
	}
	f, err := os.OpenFile(g.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("--log: %w", err)
	}
	defer f.Close()
	l := logrus.New()
	l.SetOutput(f)
	if g.logFormat == "json" {
		l.SetFormatter(new(logrus.JSONFormatter))
	}
	l.Log(level, text)
	return nil
}
