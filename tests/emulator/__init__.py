"""rational.cu and the ladder in `katlib.cuda.emulator`, and the emulator itself."""
