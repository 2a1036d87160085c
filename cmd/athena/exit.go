package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/athena-pipelines/athena/pkg/athena"
	"github.com/athena-pipelines/athena/pkg/sdk"
)

// An exit is the program's exit code. The numbers are part of the contract with
// scripts and never change their meaning.
type exit int

const (
	exitOK            exit = 0
	exitFailure       exit = 1
	exitUsage         exit = 2
	exitNotFound      exit = 3
	exitDenied        exit = 4
	exitUnavailable   exit = 5
	exitJobFailed     exit = 6
	exitIndeterminate exit = 7
	exitConflict      exit = 8
	exitNotRunnable   exit = 9
	exitRefused       exit = 10
	exitPending       exit = 11
	exitInterrupted   exit = 130
)

// exits lists the codes with their meaning, for the help.
func exits() []struct {
	code    exit
	meaning string
} {
	return []struct {
		code    exit
		meaning string
	}{
		{exitOK, "done"},
		{exitFailure, "failed, for a reason that has no code of its own"},
		{exitUsage, "the command line, or the request made of it, is not right"},
		{exitNotFound, "no such client, job, pipeline, run or key"},
		{exitDenied, "the key is missing, not valid, or may not do this; or the client is not granted the capability"},
		{exitUnavailable, "the server, the bus or the backend cannot be reached, has no room, or took too long; try again"},
		{exitJobFailed, "the job ended as failed, timed_out, cancelled or expired, or the run of a pipeline as failed or cancelled"},
		{exitIndeterminate, "the job ended as indeterminate: look at the data before running it again"},
		{exitConflict, "it cannot be done as things stand: the job has not ended yet, or has ended already; something stands in the way of capturing, or the changes that are asked for are no longer kept; somebody else was faster; or the idempotency key was used for another request"},
		{exitNotRunnable, "the client is frozen or inactive"},
		{exitRefused, "the backend refused the statement, or its engine cannot do this"},
		{exitPending, "time is up, or the command was interrupted, and the job, the run or the capture goes on"},
		{exitInterrupted, "interrupted"},
	}
}

// failed is an error that has been told to the user, with its exit code.
type failed struct {
	exit
	error
}

func (f failed) Unwrap() error { return f.error }

// usage is an error of the command line itself.
type usage struct{ error }

func usagef(format string, args ...any) error { return usage{fmt.Errorf(format, args...)} }

// outcome is the end of a job that is not a success.
type outcome struct {
	exit
	error
}

func (o outcome) Unwrap() error { return o.error }

// jobEnd is the error that fits how a job ended; nil if it succeeded.
func jobEnd(info *sdk.JobInfo) error {
	return ended(info.Err())
}

// ended gives an error that tells how a job ended the exit code of that end.
// Other errors, also of a job that goes on, stay as they are.
func ended(err error) error {
	var own *athena.Error
	if !errors.As(err, &own) {
		return err
	}
	switch state := sdk.State(fmt.Sprint(own.Details["state"])); {
	case !state.Terminal() || state == sdk.Succeeded:
		return err
	case state == sdk.Indeterminate:
		return outcome{exitIndeterminate, err}
	}
	return outcome{exitJobFailed, err}
}

// exitOf is the exit code that fits err.
func exitOf(err error) exit {
	var f failed
	var u usage
	var o outcome
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &f):
		return f.exit
	case errors.As(err, &u):
		return exitUsage
	case errors.As(err, &o):
		return o.exit
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	}
	switch athena.CodeOf(err) {
	case athena.CodeInvalidRequest, athena.CodeMissingClientHeader, athena.CodePayloadTooLarge, athena.CodeMethodNotAllowed:
		return exitUsage
	case athena.CodeNotFound, athena.CodeClientNotFound:
		return exitNotFound
	case athena.CodeUnauthenticated, athena.CodeForbidden, athena.CodeCapabilityDenied:
		return exitDenied
	case athena.CodeBackendUnavailable, athena.CodeBusUnavailable, athena.CodeTooManyRequests, athena.CodeTimeout:
		return exitUnavailable
	case athena.CodeConflict, athena.CodeIdempotencyMismatch, athena.CodeCursorExpired:
		return exitConflict
	case athena.CodeClientFrozen, athena.CodeClientInactive:
		return exitNotRunnable
	case athena.CodeQueryFailed, athena.CodeRejectedRows, athena.CodeSchemaChanged, athena.CodeCapabilityUnsupported:
		return exitRefused
	case athena.CodeCancelled:
		return exitInterrupted
	}
	return exitFailure
}

func exitHelp() string {
	var b strings.Builder
	b.WriteString("Athena's exit codes, the same for all commands:\n\n")
	for _, e := range exits() {
		fmt.Fprintf(&b, "  %3d  %s\n", e.code, e.meaning)
	}
	b.WriteString("\nWith --json, an error is one line of JSON on standard error, whose code says more.\n")
	return b.String()
}
