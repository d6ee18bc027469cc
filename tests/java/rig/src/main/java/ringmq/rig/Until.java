package ringmq.rig;

import java.time.Duration;
import java.util.concurrent.Callable;
import java.util.function.Supplier;

/** Waiting for a fact instead of for a time: asks again and again until it holds or its time is over. */
public final class Until {
    private static final long PAUSE_MS = 20;

    /** Waits until {@code fact} holds; an exception counts as "not yet". After {@code limit} it fails, naming {@code what}. */
    public static void holds(Duration limit, String what, Callable<Boolean> fact) {
        holds(limit, () -> what, fact);
    }

    /** As above, with a description made at the end, so that it can tell the last state seen. */
    public static void holds(Duration limit, Supplier<String> what, Callable<Boolean> fact) {
        long deadline = System.nanoTime() + limit.toNanos();
        while (true) {
            Throwable last = null;
            try {
                if (fact.call()) {
                    return;
                }
            } catch (Exception e) {
                last = e;
            }
            if (System.nanoTime() > deadline) {
                throw new AssertionError("not within " + limit.toSeconds() + " s: " + what.get(), last);
            }
            pause();
        }
    }

    /** One breath between two looks at a fact. */
    public static void pause() {
        try {
            Thread.sleep(PAUSE_MS);
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            throw new AssertionError("interrupted while waiting", e);
        }
    }

    private Until() {}
}
