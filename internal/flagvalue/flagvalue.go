// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package flagvalue has values of flags whose errors name the flag, its environment variable and
// the value.
package flagvalue

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/alecthomas/kingpin/v2"
)

// Add adds a flag whose default is the value of target. An empty envar stands for no environment
// variable.
func Add[T any](
	app *kingpin.Application, name, envar, help string, target *T, parse func(string) (T, error),
) *kingpin.FlagClause {
	flag := app.Flag(name, help).Envar(envar).Default(fmt.Sprint(*target))
	flag.SetValue(New(name, envar, target, parse))
	return flag
}

// Title names a flag and its environment variable, if it has one.
func Title(name, envar string) string {
	if envar == "" {
		return "--" + name
	}
	return fmt.Sprintf("--%s (%s)", name, envar)
}

// Value is a kingpin.Value that names its flag in the error of an invalid value.
type Value[T any] struct {
	title  string
	target *T
	parse  func(string) (T, error)
}

// New returns the value of a flag, which is stored in target. The error of parse completes a
// sentence that begins with the value.
func New[T any](name, envar string, target *T, parse func(string) (T, error)) Value[T] {
	return Value[T]{Title(name, envar), target, parse}
}

// String returns the value as fmt prints it.
func (v Value[T]) String() string { return fmt.Sprint(*v.target) }

// Set parses a value.
func (v Value[T]) Set(s string) (err error) {
	if *v.target, err = v.parse(s); err != nil {
		return fmt.Errorf("%s: %q %w", v.title, s, err)
	}
	return nil
}

// Text takes any text.
func Text[T ~string](s string) (T, error) { return T(s), nil }

// Number parses a number.
func Number(s string) (float64, error) {
	n, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return 0, errors.New("is not a number")
	}
	return n, nil
}

// Uint32 parses a whole number of 32 bits.
func Uint32(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0, errors.New("is not a whole number from 0 to 4294967295")
	}
	return uint32(n), nil
}

// Uint64 parses a whole number of 64 bits.
func Uint64(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, errors.New("is not a whole number of 0 or more")
	}
	return n, nil
}

// Duration parses a duration in the form of Go.
func Duration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, errors.New("is not a duration such as 1s or 250us")
	}
	return d, nil
}
