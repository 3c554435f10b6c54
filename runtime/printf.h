// Format strings that compilers check. SPDX-License-Identifier: MIT
#ifndef VKMQA_PRINTF_H
#define VKMQA_PRINTF_H

#if defined(__MINGW32__) && !defined(__clang__)
#define VKMQA_PRINTF(text, first) __attribute__((format(gnu_printf, text, first)))
#elif defined(__GNUC__)
#define VKMQA_PRINTF(text, first) __attribute__((format(printf, text, first)))
#else
#define VKMQA_PRINTF(text, first)
#endif

#endif
