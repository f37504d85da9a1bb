package mesh.apps;

import java.util.ArrayList;
import java.util.List;

/** The checked business exception: its fields must reach the caller. */
public class OrderException extends Exception {
    private static final long serialVersionUID = 1L;

    private final String code;
    private final List<String> reasons;

    public OrderException(String message, String code, List<String> reasons) {
        super(message);
        this.code = code;
        this.reasons = new ArrayList<>(reasons);
    }

    public String getCode() {
        return code;
    }

    public List<String> getReasons() {
        return reasons;
    }
}
